// Linear layers with 4-bit weights: how they come to the GPU, and which kernel computes them.
#pragma once

#include <cuda_runtime_api.h>

#include "backend.h"

namespace treadle::cuda {

/// As make_linear, without the bias. Throws Error(kUnsupported) for groups that no kernel reads.
ops::LinearWeight make_int4_linear(Backend&, const ops::WeightPiece* pieces, int32_t count,
                                   int64_t in_features, bool silu_mul);

/// The layer without its norm. p.x has as many rows as Backend's buffers.
void int4_product(Backend&, const ops::LinearParams& p, cudaStream_t);

}  // namespace treadle::cuda
