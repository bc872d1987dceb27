// y = x W^T with W of 4 bits, for more tokens than int4_skinny.h takes, on GPUs from sm_80 on:
// bound by the tensor cores, with few tokens by reading W, too.
#pragma once

#include <cuda_runtime_api.h>

#include "linear/stream_linear.h"
#include "ops/ops.h"

namespace treadle::cuda {

/// Whether int4_mma computes `p`.
bool supports_int4_mma(const ops::LinearParams& p);
/// Whether it is also faster than cuBLASLt with the weight dequantised for it (sm_80 to 89;
/// docs/design/cuda-int4.md counts).
bool prefers_int4_mma(const ops::LinearParams& p);

/// p.norm is not applied, and x's columns are in the order of the packed weight. On GPUs with
/// programmatic launches it reads W before the kernels ahead in the stream have ended. Of up to
/// 32 tokens, and of 33 to 48, 49 to 64, 65 to 96 and 97 to 128, one's result depends on the
/// layer's shape and on the GPU, not on the other tokens.
void int4_mma(const ops::LinearParams& p, ops::DType act, const StreamWorkspace&, cudaStream_t);

}  // namespace treadle::cuda
