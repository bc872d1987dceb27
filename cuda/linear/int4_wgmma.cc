#include "linear/int4_wgmma.h"

#include <algorithm>

#include "common/device.h"

namespace treadle::cuda {
namespace {

using int4::wgmma::Plan;

constexpr int kMaxSplit = 8;
constexpr int kMinSteps = 2;  // of a thread block
constexpr int kFewSteps = 8;  // of one of two thread blocks on a multiprocessor

int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

int most_split(const Plan& plan) { return std::clamp(plan.k_blocks / kMinSteps, 1, kMaxSplit); }

/// How many steps of a tile its own thread block does, if `rest` others share the last ones.
int cut_of(const Plan& plan, int rest) {
  const int tails = ceil_div(plan.tiles, rest);  // of a thread block; each costs about a step more
  int cut = ceil_div(int64_t{plan.k_blocks} * plan.tiles, plan.tiles + rest);
  while (cut < plan.k_blocks && tails * (plan.k_blocks - cut + 1) > cut) ++cut;
  return cut < plan.k_blocks - 1 ? cut : 0;
}

/// Up to 64 tokens: tiles of 128 rows, two thread blocks on a multiprocessor. The cut along K
/// depends on the layer alone.
Plan plan_fewest(const ops::LinearWeight& w, int tokens) {
  const int sms = device_info().sms;
  Plan plan{.rows = 128, .tokens = tokens <= 32 ? 32 : 64};
  plan.k_blocks = ceil_div(w.in_features, int4::wgmma::kDepth);
  plan.token_tiles = 1;
  plan.tiles = ceil_div(w.out_features, plan.rows);
  const int slots = 2 * sms;
  const int alone = std::clamp(sms / plan.tiles, 1, most_split(plan));
  const int both =
      std::clamp(std::min(slots / plan.tiles, plan.k_blocks / kFewSteps), 1, kMaxSplit);
  plan.split = std::max(alone, both);
  plan.per_sm = plan.split > both || (plan.split == alone && alone > 1) ? 1 : 2;
  plan.whole = plan.split > 1 ? 0 : plan.tiles;
  plan.blocks = std::min(plan.per_sm * sms, plan.tiles * plan.split);
  if (plan.split == 1 && plan.tiles < slots) {
    plan.cut = cut_of(plan, slots - plan.tiles);
    if (plan.cut > 0) plan.blocks = slots;
  }
  return plan;
}

/// Up to 128 tokens: one round of tiles. The cut along K depends on the layer alone.
Plan plan_few(const ops::LinearWeight& w, int tokens) {
  const int sms = device_info().sms;
  Plan best;
  double best_cost = 0.0;
  for (const int rows : {256, 192, 128}) {
    Plan plan{.rows = rows, .tokens = tokens <= 96 ? 96 : 128};
    plan.k_blocks = ceil_div(w.in_features, int4::wgmma::kDepth);
    plan.token_tiles = 1;
    plan.tiles = ceil_div(w.out_features, rows);
    plan.split = std::clamp(sms / plan.tiles, 1, most_split(plan));
    plan.whole = plan.split > 1 ? 0 : plan.tiles;
    plan.blocks = std::min(sms, plan.tiles * plan.split);
    // A thread block's rows of W, what it reads of x, and the sums that it exchanges; the weights
    // of the three fit what was measured of six shapes.
    const int rounds = ceil_div(int64_t{plan.tiles} * plan.split, sms);
    const double steps = double(plan.k_blocks) / plan.split;
    const double cost = rounds * steps * (rows + 32) + (plan.split > 1 ? 5.0 * rows : 0.0);
    if (best.rows == 0 || cost < best_cost) {
      best = plan;
      best_cost = cost;
    }
  }
  return best;
}

/// Tiles for more tokens, and the cycles that 128 columns of one take, as measured.
struct LargeTile {
  int rows, tokens;
  double step;
};
constexpr LargeTile kLargeTiles[] = {{128, 256, 2190}, {192, 192, 2600}, {256, 128, 2300},
                                     {128, 192, 1750}, {192, 128, 1880}, {128, 128, 1510}};
constexpr double kTileCycles = 8000;  // of a tile besides: start, epilogue
// Of a sum that thread blocks exchange: in L2, within a cluster, or within two and between them.
constexpr double kExchangeCycles = 0.55;
constexpr double kPairCycles = 0.11;
constexpr double kPairsCycles = 0.26;

Plan plan_many(const ops::LinearWeight& w, int tokens) {
  const int sms = device_info().sms;
  Plan best;
  double best_cost = 0.0;
  const auto propose = [&](const Plan& plan, double cost) {
    if (best.rows > 0 && cost >= best_cost) return;
    best = plan;
    best_cost = cost;
  };
  for (const LargeTile& tile : kLargeTiles) {
    Plan plan{.rows = tile.rows, .tokens = tile.tokens};
    plan.k_blocks = ceil_div(w.in_features, int4::wgmma::kDepth);
    plan.token_tiles = ceil_div(tokens, tile.tokens);
    plan.tiles = ceil_div(w.out_features, tile.rows) * plan.token_tiles;
    plan.whole = plan.tiles / sms * sms;
    const int rest = plan.tiles - plan.whole;
    plan.split = rest > 0 ? std::clamp(sms / rest, 1, most_split(plan)) : 1;
    if (plan.split == 1) plan.whole = plan.tiles;
    plan.blocks = std::min(sms, std::max(plan.whole, rest * plan.split));
    const auto cycles = [&](int split) {
      return ceil_div(plan.k_blocks, split) * tile.step + kTileCycles;
    };
    const double sums = double(tile.rows) * tile.tokens;
    double cost = ceil_div(plan.whole, sms) * cycles(1);
    if (plan.split > 1) cost += cycles(plan.split) + kExchangeCycles * sums;
    propose(plan, cost);
    for (const int split : {2, 4}) {
      if (split * plan.tiles > sms || split > most_split(plan) || tile.rows == 256) continue;
      plan.whole = 0;
      plan.split = split;
      plan.pair = true;
      plan.blocks = split * plan.tiles;
      propose(plan, cycles(split) + (split == 2 ? kPairCycles : kPairsCycles) * sums);
    }
  }
  return best;
}

Plan make_plan(const ops::LinearWeight& w, int tokens) {
  if (tokens <= 64) return plan_fewest(w, tokens);
  return tokens <= 128 ? plan_few(w, tokens) : plan_many(w, tokens);
}

}  // namespace

bool supports_int4_wgmma(const ops::LinearParams& p) {
  const ops::LinearWeight& w = *p.weight;
  const int64_t g = w.group_size;
  return w.format == ops::WeightFormat::kInt4Group && int4::wgmma::built() &&
         device_info().capability == 90 && w.in_features > 0 && w.in_features % 8 == 0 &&
         w.out_features % (p.silu_mul ? 16 : 8) == 0 && w.in_features < (1 << 20) &&
         w.out_features < (1 << 20) && (g == w.in_features || g == 32 || g == 64 || g % 128 == 0);
}

void int4_wgmma(const ops::LinearParams& p, ops::DType act, const StreamWorkspace& workspace,
                cudaStream_t stream) {
  const Plan plan = make_plan(*p.weight, p.num_tokens);
  if (act == ops::DType::kF16) {
    return int4::wgmma::launch_f16(p, plan, workspace.parts(), stream);
  }
  int4::wgmma::launch_bf16(p, plan, workspace.parts(), stream);
}

}  // namespace treadle::cuda
