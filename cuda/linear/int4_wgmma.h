// y = x W^T with W of 4 bits, for more tokens than int4_skinny.h takes (sm_90a): bound by the
// bandwidth that W is read with, from a few hundred tokens on by the tensor cores.
#pragma once

#include <cuda_runtime_api.h>

#include "linear/int4_wgmma_plan.h"
#include "linear/stream_linear.h"
#include "ops/ops.h"

namespace treadle::cuda {

/// Whether int4_wgmma computes `p`: groups of 32, 64, a multiple of 128 columns, or one for all.
bool supports_int4_wgmma(const ops::LinearParams& p);

/// p.norm is not applied, and x's columns are in the order of the packed weight. Reads W before the
/// kernels ahead in the stream have ended. Up to 64 tokens, and from 65 to 128, a token's result
/// depends on the layer's shape and on the GPU, not on the other tokens.
void int4_wgmma(const ops::LinearParams& p, ops::DType act, const StreamWorkspace&, cudaStream_t);

}  // namespace treadle::cuda
