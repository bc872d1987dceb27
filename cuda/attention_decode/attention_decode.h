// Split-K attention of single tokens over the paged KV pool.
//
// One launch of a grid that depends on the GPU alone, so a captured graph stays valid whatever the
// lengths are: each block of threads finds its equal share of all (sequence, KV head, 64-key block)
// items from the lengths on the device. See docs/design/cuda-attention.md.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

#include "ops/ops.h"

namespace treadle::cuda {

/// Memory that launches on one stream share. Must be zeroed once before the first; every launch
/// leaves its counters at zero again.
struct DecodeWorkspace {
  void* data = nullptr;  // device memory aligned to 16 bytes
  size_t bytes = 0;      // at least decode_workspace_bytes()
};

/// For the current device. Does not depend on the context length or on how many keys there are.
size_t decode_workspace_bytes(int32_t max_sequences, int32_t heads, int32_t kv_heads,
                              int32_t head_dim);

/// Whether attention_decode can run: head_dim 64, 80, 96, 128 or 256, up to 16 query heads for each
/// KV head, a float16, bfloat16 or int8 pool.
bool supports_attention_decode(const ops::AttentionParams& p);

/// Attention of sequences [0, num_decode), whose token t is sequence t. q and out have the type
/// `act`, float16 or bfloat16, and so has the pool, or it is int8; out rows of sequences with
/// context_len 0 are zeros. The order of additions depends on the lengths of the batch and the GPU
/// only, so equal launches give equal bits.
///
/// On sm_90 it is launched as a programmatic dependent: no kernel since the last copy in the stream
/// may write context_len, block_tables or the pages of any block but each sequence's last (q and
/// the newest keys it may).
///
/// With p.qkv (where supports_attention_qkv() says so) the kernel also does the work of that
/// operation: its queries are rounded to `act` as there, and pages and output are equal to the bit
/// to those of the two operations. Then no kernel since the last copy may write pages at all.
void attention_decode(const ops::AttentionParams& p, ops::DType act, DecodeWorkspace& workspace,
                      cudaStream_t stream);

/// Whether attention_decode takes these as AttentionParams::qkv: heads as supported above, all of
/// their columns rotated, no logn scaling, a pool of type `act`, or of int8 with head_dim 128.
bool supports_attention_qkv(const ops::QkvParams& p, ops::DType act);

}  // namespace treadle::cuda
