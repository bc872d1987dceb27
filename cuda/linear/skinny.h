// y = x W^T for at most eight tokens: bound by the bandwidth that W is read with.
#pragma once

#include <cuda_runtime_api.h>

#include "ops/ops.h"

namespace treadle::cuda {

constexpr int32_t kSkinnyTokens = 8;

/// Whether skinny_linear computes `p`: few tokens, rows of W in whole 16-byte vectors.
bool supports_skinny_linear(const ops::LinearParams& p);

/// p.x is normalised already. A token's result does not depend on how many others there are.
void skinny_linear(const ops::LinearParams& p, ops::DType act, cudaStream_t);

}  // namespace treadle::cuda
