#include "linear/int4_mma.h"

#include <algorithm>

#include "common/device.h"
#include "linear/int4_layout.h"
#include "linear/int4_mma_plan.h"

namespace treadle::cuda {
namespace {

using int4::mma::Plan;

constexpr int kMaxSplit = 16;
constexpr int kMinSteps = 4;  // of a thread block
// Steps in whose time sums are exchanged among all thread blocks of a tile. Handed over to one of
// them they take half a step more for each.
constexpr int kExchangeSteps = 4;

// Tokens, on GPUs whose tensor cores take no more than 8 cycles for a product.
constexpr int32_t kMostForWide = 512;

int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

/// Tokens of a tile. A step's time besides its products is that of about 16 tokens.
int tile_tokens(int tokens) {
  int best = 128;
  for (const int tile : {96, 64, 48, 32}) {
    const auto cost = [tokens](int t) { return ceil_div(tokens, t) * (t + 16); };
    if (cost(tile) < cost(best)) best = tile;
  }
  return best;
}

Plan make_plan(const ops::LinearParams& p) {
  const ops::LinearWeight& w = *p.weight;
  const DeviceInfo& gpu = device_info();
  Plan plan;
  plan.tokens = tile_tokens(p.num_tokens);
  int blocks = int4::mma::register_blocks(plan.tokens);
  // The driver keeps a kilobyte of each thread block's shared memory, and of a multiprocessor's one
  // that a block cannot have.
  const int stage = int4::mma::stage_bytes(plan.tokens);
  const int room = gpu.shared_bytes + 1024;
  while (blocks > 1 && room / blocks - 1024 < 2 * stage) --blocks;
  plan.stages = (room / blocks - 1024) / stage;
  plan.stages = plan.stages >= 5 ? 5 : plan.stages >= 3 ? 3 : 2;
  plan.token_tiles = ceil_div(p.num_tokens, plan.tokens);
  const int4::Layout layout = int4::layout_of(w, p.silu_mul);
  plan.tiles = ceil_div(layout.tiles * int4::kTileRows, int4::mma::kRows) * plan.token_tiles;
  plan.steps = ceil_div(w.in_features, int4::mma::kDepth);
  const int slots = gpu.sms * blocks;
  const int64_t all = int64_t{plan.tiles} * plan.steps;
  // Costs are steps of the busiest thread block: as many as fit a multiprocessor hide each other's
  // latency, and one alone takes nearly as long.
  plan.each = ceil_div(plan.tiles, slots) * plan.steps;
  int cost = plan.each;
  const int each = std::max(ceil_div(all, slots), kMinSteps);
  const int handover = kExchangeSteps + ceil_div(plan.steps, each) / 2;
  if (each + handover < cost) {
    plan.each = each;
    cost = each + handover;
  }
  for (int split = 2; split <= kMaxSplit && split * plan.tiles <= slots; ++split) {
    const int steps = ceil_div(plan.steps, split);
    if (steps < kMinSteps || steps + kExchangeSteps >= cost) continue;
    plan.split = split;
    cost = steps + kExchangeSteps;
  }
  plan.blocks = plan.split > 1 ? plan.tiles * plan.split : ceil_div(all, plan.each);
  return plan;
}

}  // namespace

bool supports_int4_mma(const ops::LinearParams& p) {
  const ops::LinearWeight& w = *p.weight;
  return w.format == ops::WeightFormat::kInt4Group &&
         int4::supports_groups(w.in_features, w.group_size) &&
         w.out_features % (p.silu_mul ? 16 : 8) == 0 && !(p.float_output && p.add) &&
         w.in_features < (1 << 20) && w.out_features < (1 << 20) &&
         (w.out_features / int4::mma::kRows + 1) * (p.num_tokens / 32 + 1) *
                 (w.in_features / 64 + 1) <
             (int64_t{1} << 31);
}

bool prefers_int4_mma(const ops::LinearParams& p) {
  const int capability = device_info().capability;
  const bool wide = capability == 80 || capability >= 90;
  return supports_int4_mma(p) && (!wide || p.num_tokens <= kMostForWide);
}

void int4_mma(const ops::LinearParams& p, ops::DType act, const StreamWorkspace& workspace,
              cudaStream_t stream) {
  const Plan plan = make_plan(p);
  if (act == ops::DType::kF16) {
    return int4::mma::launch_f16(p, plan, workspace.parts(), stream);
  }
  int4::mma::launch_bf16(p, plan, workspace.parts(), stream);
}

}  // namespace treadle::cuda
