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

}  // namespace treadle::cuda::decode
