// The compiled versions, one file for each type of pool. All throw treadle::Error.
#pragma once

#include <cuda_runtime_api.h>

#include "ops/types.h"

namespace treadle::cuda::decode {

struct Params;

struct LaunchPlan {
  int grid = 0, stages = 0, shared_bytes = 0;
};

/// act: the type of q.
void launch_16bit(ops::DType act, int head_dim, const Params& params, const LaunchPlan& plan,
                  cudaStream_t stream);
void launch_int8(ops::DType act, int head_dim, const Params& params, const LaunchPlan& plan,
                 cudaStream_t stream);
/// With the QKV operation's work (Params::making).
void launch_making_16bit(ops::DType act, int head_dim, const Params& params, const LaunchPlan& plan,
                         cudaStream_t stream);
/// head_dim is kMakingInt8Dim: other widths lack registers, or have pairs of RoPE in two lanes.
constexpr int kMakingInt8Dim = 128;
void launch_making_int8(ops::DType act, const Params& params, const LaunchPlan& plan,
                        cudaStream_t stream);

}  // namespace treadle::cuda::decode
