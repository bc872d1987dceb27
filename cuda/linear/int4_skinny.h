// y = x W^T for at most 16 tokens with 4-bit weights: bound by the bandwidth that W is read with.
#pragma once

#include <cuda_runtime_api.h>

#include "ops/ops.h"

namespace treadle::cuda {

constexpr int32_t kInt4SkinnyTokens = 16;

/// Whether int4_skinny_linear computes `p`, or parts of it where there are more tokens.
bool supports_int4_skinny(const ops::LinearParams& p);

/// p.x is normalised already and its columns are in the order of the packed ones. A token's result
/// depends on the layer's shape and on the GPU, not on the other tokens.
void int4_skinny_linear(const ops::LinearParams& p, ops::DType act, cudaStream_t);

}  // namespace treadle::cuda
