#include "linear/stream_linear.h"

#include <algorithm>

#include "common/device.h"
#include "linear/stream_many_plan.h"

namespace treadle::cuda {
namespace {

constexpr int kMaxSplit = 8;
constexpr int kMinSteps = 4;  // of a thread block

// Tokens up to which layers cut along K were measured faster without clusters, and from which on
// with them (stream_many_kernel.cuh).
constexpr int32_t kMostForNarrow = 112;
constexpr int32_t kManyTokens = 81;

size_t part_bytes() {
  return static_cast<size_t>(device_info().sms) * stream::kMostSums * sizeof(float);
}

stream::Plan make_plan(const ops::LinearWeight& w) {
  const int sms = device_info().sms;
  stream::Plan plan;
  plan.tiles = static_cast<int>((w.out_features + stream::kRows - 1) / stream::kRows);
  plan.k_blocks = static_cast<int>((w.in_features + stream::kDepth - 1) / stream::kDepth);
  plan.split = std::clamp(sms / plan.tiles, 1, std::clamp(plan.k_blocks / kMinSteps, 1, kMaxSplit));
  if (plan.split > 1) {
    plan.blocks = plan.tiles * plan.split;
    return plan;
  }
  // One tile or two: thread blocks with one are done early and leave the others their bandwidth.
  // More: so many thread blocks that each has the same number, or nearly.
  const int rounds = (plan.tiles + sms - 1) / sms;
  plan.blocks = rounds <= 2 ? std::min(plan.tiles, sms) : (plan.tiles + rounds - 1) / rounds;
  return plan;
}

/// The same cut for more tokens, or none (split = 0): two tiles share a cluster's x.
stream::many::Plan make_many_plan(const ops::LinearWeight& w) {
  const stream::Plan plan = make_plan(w);
  if (plan.tiles % 2 != 0 || plan.split < 2 || plan.split > 4) return {};
  return {
      .tiles = plan.tiles, .k_blocks = plan.k_blocks, .split = plan.split, .blocks = plan.blocks};
}

bool takes_many(const ops::LinearParams& p) {
  return p.num_tokens >= kManyTokens && p.num_tokens <= stream::many::kMostTokens && !p.silu_mul &&
         !p.float_output && make_many_plan(*p.weight).split > 0;
}

}  // namespace

size_t StreamWorkspace::bytes() {
  return part_bytes() + static_cast<size_t>(device_info().sms) * stream::kCounters * sizeof(int);
}

StreamWorkspace::StreamWorkspace() {
  const size_t counters = bytes() - part_bytes();
  memory_ = make_device_memory(bytes());
  check(cudaMemset(static_cast<char*>(memory_.get()) + part_bytes(), 0, counters),
        "clear counters");
  check(cudaStreamSynchronize(nullptr), "clear counters");  // for streams that do not wait for it
}

stream::Parts StreamWorkspace::parts() const {
  return {.sums = static_cast<float*>(memory_.get()),
          .counters = reinterpret_cast<int*>(static_cast<char*>(memory_.get()) + part_bytes())};
}

bool supports_stream_linear(const ops::LinearParams& p) {
  const ops::LinearWeight& w = *p.weight;
  return stream::built() && device_info().capability == 90 &&
         (p.num_tokens <= kStreamTokens || takes_many(p)) &&
         w.format == ops::WeightFormat::kDense && w.in_features > 0 && w.in_features % 8 == 0 &&
         w.out_features % (p.silu_mul ? 16 : 8) == 0 && w.in_features < (1 << 20) &&
         w.out_features < (1 << 20);
}

bool streams_evenly(const ops::LinearWeight& w) {
  const stream::Plan plan = make_plan(w);
  const int most = (plan.tiles + plan.blocks - 1) / plan.blocks;
  return 5 * plan.tiles >= 4 * plan.blocks * most;
}

bool prefers_stream_linear(const ops::LinearParams& p) {
  if (!supports_stream_linear(p)) return false;
  const ops::LinearWeight& w = *p.weight;
  const int64_t elements = w.in_features * w.out_features;
  if (p.num_tokens <= 32) return true;
  if (p.num_tokens <= 64) return elements >= int64_t{8} << 20;
  // The larger traffic of x leaves no time to wait for thread blocks with a tile more.
  if (p.silu_mul) return elements >= int64_t{64} << 20 && streams_evenly(w);
  if (elements < int64_t{32} << 20) return false;
  const stream::Plan plan = make_plan(w);
  if (plan.split > 1 && p.num_tokens <= kMostForNarrow) return true;
  return takes_many(p) && 10 * plan.blocks >= 9 * device_info().sms;
}

void stream_linear(const ops::LinearParams& p, ops::DType act, const StreamWorkspace& workspace,
                   cudaStream_t stream) {
  if (takes_many(p)) {
    const stream::many::Plan plan = make_many_plan(*p.weight);
    if (act == ops::DType::kF16) {
      return stream::many::launch_f16(p, plan, workspace.parts(), stream);
    }
    return stream::many::launch_bf16(p, plan, workspace.parts(), stream);
  }
  const stream::Plan plan = make_plan(*p.weight);
  if (act == ops::DType::kF16) return stream::launch_f16(p, plan, workspace.parts(), stream);
  stream::launch_bf16(p, plan, workspace.parts(), stream);
}

}  // namespace treadle::cuda
