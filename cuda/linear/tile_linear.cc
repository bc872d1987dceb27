#include "linear/tile_linear.h"

#include <algorithm>

#include "common/device.h"
#include "linear/stream_linear.h"

namespace treadle::cuda {
namespace {

// Where it was measured to be faster (docs/design/cuda-linear.md). Up to the tokens of a tile the
// other way is the streaming product, which has an advantage where its thread blocks end together.
constexpr int32_t kStreamedTokens = 16;
constexpr int32_t kEvenlyStreamedTokens = 80;
// Beyond them it is cuBLASLt. The part of its time that a product multiplies, by `cost`, at least:
constexpr int32_t kFewTokens = 512;
constexpr int32_t kSlowTokens = 384;
constexpr double kBusyOfFew = 0.64;
constexpr double kBusy = 0.55;

constexpr int kBand = 8;  // token tiles that take turns: 2048 tokens, whose x stays in L2

int up(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

int clusters() { return device_info().sms / tile::kCluster; }

tile::Plan make_plan(const ops::LinearParams& p, tile::Share share, int rows) {
  const bool share_w = share == tile::Share::kW;
  tile::Plan plan{.share = share, .rows = rows};
  plan.token_tiles = up(p.num_tokens, tile::kTokens * (share_w ? tile::kCluster : 1));
  plan.w_tiles = up(p.weight->out_features, rows * (share_w ? 1 : tile::kCluster));
  plan.tiles = plan.token_tiles * plan.w_tiles;
  plan.k_blocks = up(p.weight->in_features, tile::kDepth);
  plan.band = std::min(kBand, plan.token_tiles);
  plan.blocks = tile::kCluster * std::min(plan.tiles, clusters());
  return plan;
}

/// Rows of W that each thread block computes 128 tokens of, which is what the product's time goes
/// with. A tile's tokens cost as much as some more rows: they are brought from L2 for each.
int64_t cost(const tile::Plan& plan) {
  constexpr int kRowsOfTokens = 100;  // fitted to tiles of 192 to 256 rows, 256 to 8192 tokens
  return int64_t{up(plan.tiles, clusters())} * (plan.rows + kRowsOfTokens);
}

/// The tiles of the least cost.
tile::Plan best_plan(const ops::LinearParams& p) {
  tile::Plan best = make_plan(p, tile::Share::kW, 256);
  for (const tile::Plan& plan :
       {make_plan(p, tile::Share::kW, 224), make_plan(p, tile::Share::kW, 192),
        make_plan(p, tile::Share::kX, 224), make_plan(p, tile::Share::kX, 176)}) {
    if (cost(plan) < cost(best)) best = plan;
  }
  return best;
}

}  // namespace

bool supports_tile_linear(const ops::LinearParams& p) {
  const ops::LinearWeight& w = *p.weight;
  return tile::built() && device_info().capability == 90 && p.silu_mul && !p.add &&
         !p.float_output && w.bias == nullptr && w.format == ops::WeightFormat::kDense &&
         w.in_features >= tile::kLeastDepth && w.in_features % 8 == 0 && w.out_features % 16 == 0 &&
         w.in_features < (1 << 20) && w.out_features < (1 << 20);
}

bool prefers_tile_linear(const ops::LinearParams& p) {
  if (p.num_tokens <= kStreamedTokens || !supports_tile_linear(p)) return false;
  const ops::LinearWeight& w = *p.weight;
  const tile::Plan plan = best_plan(p);
  if (p.num_tokens <= tile::kTokens) {  // bound by reading W, so all must read it
    return w.in_features * w.out_features >= int64_t{64} << 20 && plan.tiles <= clusters() &&
           10 * plan.tiles >= 9 * clusters() &&
           (p.num_tokens > kEvenlyStreamedTokens || !streams_evenly(w));
  }
  const bool few = p.num_tokens <= kFewTokens;
  // As cuBLASLt's choices go. Between 384 and 512 tokens its time is that of 512, or far more.
  const int step = p.num_tokens <= kSlowTokens ? 64 : 128;
  const int tokens = few ? step * up(p.num_tokens, step) : p.num_tokens;
  const double done = static_cast<double>(cost(plan)) * tile::kCluster * clusters() * tile::kTokens;
  return static_cast<double>(w.out_features) * tokens > (few ? kBusyOfFew : kBusy) * done;
}

void tile_linear(const ops::LinearParams& p, ops::DType act, cudaStream_t stream) {
  const tile::Plan plan = best_plan(p);
  if (act == ops::DType::kF16) return tile::launch_f16(p, plan, stream);
  tile::launch_bf16(p, plan, stream);
}

}  // namespace treadle::cuda
