#include "linear/int4_wgmma.h"

#include <algorithm>

#include "common/device.h"

namespace treadle::cuda {
namespace {

using int4::wgmma::Plan;

constexpr int kMaxSplit = 8;
constexpr int kMinSteps = 2;  // of a thread block

int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

Plan make_plan(const ops::LinearWeight& w, int tokens) {
  const int sms = device_info().sms;
  Plan plan;
  plan.k_blocks = ceil_div(w.in_features, int4::wgmma::kDepth);
  const int most_split = std::clamp(plan.k_blocks / kMinSteps, 1, kMaxSplit);
  plan.tokens = tokens <= 32 ? 32 : tokens <= 64 ? 64 : 128;
  plan.token_tiles = ceil_div(tokens, plan.tokens);
  // Tiles of 256 rows read x half as often, but narrow layers have too few of them. For the tokens
  // of a decode step the cut along K is the same whatever their number.
  const int narrow_tiles = ceil_div(w.out_features, 128);
  const int narrow_split = std::clamp(sms / narrow_tiles, 1, most_split);
  const bool narrow = plan.token_tiles == 1 && narrow_split > 1;
  plan.rows = narrow ? 128 : 256;
  plan.tiles = ceil_div(w.out_features, plan.rows) * plan.token_tiles;
  if (plan.token_tiles == 1) {
    plan.split = narrow ? narrow_split : 1;
    plan.whole = narrow ? 0 : plan.tiles;
    plan.blocks = std::min(sms, plan.tiles * plan.split);
    return plan;
  }
  plan.whole = plan.tiles / sms * sms;
  const int rest = plan.tiles - plan.whole;
  plan.split = rest > 0 ? std::clamp(sms / rest, 1, most_split) : 1;
  if (plan.split == 1) plan.whole = plan.tiles;
  plan.blocks = std::min(sms, std::max(plan.whole, rest * plan.split));
  return plan;
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
