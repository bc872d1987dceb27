#include "linear/tile_linear.h"

#include <algorithm>

#include "common/device.h"

namespace treadle::cuda {
namespace {

// Where it was measured to be faster than the streaming product, whose box of x has zeros in every
// step from 65 tokens to nearly 128, and than cuBLASLt.
constexpr int32_t kStreamedTokens = 64;
constexpr int32_t kMostInsteadOfStream = 112;
constexpr int32_t kCublasTokens = 192;

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

/// Rows of W that each thread block computes 128 tokens of: what the product's time goes with.
int64_t cost(const tile::Plan& plan) { return int64_t{up(plan.tiles, clusters())} * plan.rows; }

/// The tiles that leave the fewest multiprocessors idle.
tile::Plan best_plan(const ops::LinearParams& p) {
  tile::Plan best = make_plan(p, tile::Share::kW, 256);
  for (const tile::Plan& plan :
       {make_plan(p, tile::Share::kW, 224), make_plan(p, tile::Share::kW, 192),
        make_plan(p, tile::Share::kX, 224)}) {
    if (cost(plan) < cost(best)) best = plan;
  }
  return best;
}

}  // namespace

bool supports_tile_linear(const ops::LinearParams& p) {
  const ops::LinearWeight& w = *p.weight;
  return tile::built() && device_info().capability == 90 && p.silu_mul && w.bias == nullptr &&
         w.format == ops::WeightFormat::kDense && w.in_features > 0 && w.in_features % 8 == 0 &&
         w.out_features % 16 == 0 && w.in_features < (1 << 20) && w.out_features < (1 << 20);
}

bool prefers_tile_linear(const ops::LinearParams& p) {
  if (p.num_tokens <= kStreamedTokens || !supports_tile_linear(p)) return false;
  if (p.num_tokens <= kMostInsteadOfStream) {  // bound by reading W, so all must read it
    const tile::Plan plan = best_plan(p);
    const int64_t elements = p.weight->in_features * p.weight->out_features;
    return elements >= int64_t{64} << 20 && plan.tiles <= clusters() &&
           10 * plan.tiles >= 9 * clusters();
  }
  if (p.num_tokens <= kCublasTokens) return false;
  const double done =
      static_cast<double>(cost(best_plan(p))) * tile::kCluster * clusters() * tile::kTokens;
  const double wanted = static_cast<double>(p.weight->out_features) * p.num_tokens;
  return wanted > 0.83 * done;
}

void tile_linear(const ops::LinearParams& p, ops::DType act, cudaStream_t stream) {
  const tile::Plan plan = best_plan(p);
  if (act == ops::DType::kF16) return tile::launch_f16(p, plan, stream);
  tile::launch_bf16(p, plan, stream);
}

}  // namespace treadle::cuda
