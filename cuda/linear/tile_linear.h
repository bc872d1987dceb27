// y = x W^T for many tokens with the gated activation in the same kernel: bound by the tensor
// cores.
#pragma once

#include <cuda_runtime_api.h>

#include "linear/tile_plan.h"
#include "ops/ops.h"

namespace treadle::cuda {

/// Whether tile_linear computes `p`.
bool supports_tile_linear(const ops::LinearParams& p);
/// Whether it is also faster than the streaming product and cuBLASLt, as measured
/// (docs/design/cuda-linear.md).
bool prefers_tile_linear(const ops::LinearParams& p);

/// p.norm is not applied: x is normalised already. A token's result depends on the layer alone.
void tile_linear(const ops::LinearParams& p, ops::DType act, cudaStream_t stream);

}  // namespace treadle::cuda
