// Causal attention of prompt chunks over the paged KV pool, read in place.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

#include "ops/ops.h"

namespace treadle::cuda {

/// Memory that launches on one stream share. Must be zeroed once before the first; every launch
/// leaves it at zero again.
struct PrefillWorkspace {
  void* data = nullptr;  // device memory aligned to 16 bytes
  size_t bytes = 0;      // at least prefill_workspace_bytes()
};

constexpr size_t prefill_workspace_bytes() { return 256; }

/// head_dim 64, 80, 96, 128 or 256, a float16, bfloat16 or int8 pool.
bool supports_attention_prefill(const ops::AttentionParams& p);

/// The wgmma version: sm_90 alone.
bool supports_attention_prefill_wgmma(const ops::AttentionParams& p);

/// Attention of sequences [num_decode, num_sequences), whose queries are the last query_len keys of
/// context_len. q and out have the type `act`, float16 or bfloat16, and so has the pool, or it is
/// int8. Equal launches give equal bits: a row's order of additions
/// depends on its own position only. Picks the wgmma version where it runs.
void attention_prefill(const ops::AttentionParams& p, ops::DType act, PrefillWorkspace& workspace,
                       cudaStream_t stream);

/// Every GPU from sm_80 on.
void attention_prefill_mma(const ops::AttentionParams& p, ops::DType act, cudaStream_t stream);

/// sm_90 alone.
void attention_prefill_wgmma(const ops::AttentionParams& p, ops::DType act,
                             PrefillWorkspace& workspace, cudaStream_t stream);

}  // namespace treadle::cuda
