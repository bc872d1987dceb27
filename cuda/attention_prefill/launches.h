// The compiled versions, one file for each element type. All throw treadle::Error.
#pragma once

#include <cuda_runtime_api.h>

#include "attention_prefill/params.h"
#include "ops/ops.h"

namespace treadle::cuda::prefill {

/// What both versions read from the seam's parameters, for sequences [first, first + count).
/// Workspace pointers are left null.
Params make_params(const ops::AttentionParams& p, int first, int count);

/// Whether this build holds the wgmma version (TREADLE_CUDA_ARCHS has 90a).
bool has_wgmma();
void launch_wgmma_f16(const ops::AttentionParams& p, const Params& params, cudaStream_t stream);
void launch_wgmma_bf16(const ops::AttentionParams& p, const Params& params, cudaStream_t stream);
void launch_mma_f16(const ops::AttentionParams& p, const Params& params, cudaStream_t stream);
void launch_mma_bf16(const ops::AttentionParams& p, const Params& params, cudaStream_t stream);

}  // namespace treadle::cuda::prefill
