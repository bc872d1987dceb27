// The seam between the model and the hardware: a table of functions, chosen once at load.
//
// Every operation takes a plain parameter struct; each pointer's shape is in its comment,
// row-major, dense unless a stride is named. Pointers are borrowed and live in the backend's memory
// (alloc). Activations have the backend's activation type (Ops::act_dtype: float32 on the CPU).
// Operations are ordered by their stream; results may be read after synchronize(). A failing device
// throws treadle::Error(kDevice); nothing else is thrown.
//
// Batch invariance: a token's result does not depend on the other tokens of the batch, nor on how a
// prompt was cut into chunks. Reductions run in an order that depends on the token's own position
// alone, so on the CPU results are bit-identical.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/sample_params.h"
#include "ops/types.h"

namespace treadle::ops {

/// Rows of the embedding table, or of the output head itself when the two are tied.
struct EmbedParams {
  const int32_t* ids = nullptr;        // [T]; below 0 reads as 0: where no token could be chosen
  const void* table = nullptr;         // [V][H] of table_dtype, or null
  const LinearWeight* tied = nullptr;  // head weight (N = V, K = H), used when table is null
  DType table_dtype = DType::kF32;
  void* out = nullptr;  // [T][H]
  int32_t num_tokens = 0;
  int32_t hidden = 0;
};

/// y = x W^T + bias. With silu_mul the weight holds gate and up stacked ([2 * I][K]) and
/// y[t][i] = silu(gate_i) * up_i has I columns. With norm, x is RMS-normalised on the way:
/// x / sqrt(mean(x^2) + norm_eps) * norm, rounded to act_dtype.
struct LinearParams {
  const void* x = nullptr;  // [T][K]
  const LinearWeight* weight = nullptr;
  const float* norm = nullptr;  // [K] or null
  float norm_eps = 1e-6F;
  void* y = nullptr;  // [T][N], or [T][N / 2] with silu_mul
  int32_t num_tokens = 0;
  int32_t spare_rows = 0;  // of x and y behind the tokens': may be read and overwritten
  bool silu_mul = false;
  bool add = false;  // y += instead of y = (the residual stream); y of act_dtype, not gated
  bool float_output = false;  // y is float32 whatever act_dtype is (logits)
};

/// Angles of rotary embedding for each token: cos_sin[t][i] = (cos, sin)(position * inv_freq_i).
/// Dynamic NTK (see model/rope.h): inv_freq depends on rope_len[t], the length its base is for.
struct RopeParams {
  const int32_t* positions = nullptr;  // [T]
  const int32_t* rope_len = nullptr;   // [T] or null when the base is fixed
  const float* inv_freq = nullptr;     // [rotary_dim / 2] used while rope_len <= original_len
  float* cos_sin = nullptr;            // [T][rotary_dim / 2][2]
  int32_t num_tokens = 0;
  int32_t rotary_dim = 0;
  float attention_factor = 1.0F;  // multiplies cos and sin (yarn)
  // Dynamic NTK: base' = base * (factor * len / original_len - (factor - 1))^(d / (d - 2))
  double dynamic_base = 0.0;  // 0 = fixed
  double dynamic_factor = 1.0;
  int32_t original_len = 0;
};

/// Splits the fused projection, applies qk-norm, RoPE (rotate-half pairs i, i + d/2) and logn
/// scaling, writes K and V to the pool at each token's position, and Q to q_out.
struct QkvParams {
  const void* qkv = nullptr;       // [T][(heads + 2 * kv_heads) * head_dim]: Q, then K, then V
  void* q_out = nullptr;           // [T][heads][head_dim]
  const float* q_norm = nullptr;   // [head_dim] RMS norm per head (qwen3), or null
  const float* k_norm = nullptr;   // [head_dim]
  const float* cos_sin = nullptr;  // [T][rotary_dim / 2][2]
  int32_t rotary_dim = 0;
  float norm_eps = 1e-6F;
  int32_t logn_len = 0;  // > 0: Q at position p is scaled by max(1, log(p + 1) / log(logn_len))
  int32_t heads = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
  int32_t layer = 0;
  KvPool kv;
  SequenceBatch batch;
};

/// Causal attention over the pool, both parts of the batch: a query at position p sees keys
/// max(0, p - window + 1) .. p (window 0 = all). Grouped heads: query head h reads h / (H / KVH).
struct AttentionParams {
  const void* q = nullptr;  // [T][heads][head_dim]; not read with `qkv`
  void* out = nullptr;      // [T][heads][head_dim]
  float scale = 1.0F;       // of q . k before the softmax
  int32_t window = 0;
  int32_t heads = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
  int32_t layer = 0;
  KvPool kv;
  SequenceBatch batch;
  /// Or, where Ops::attention_makes_qkv says so: the operation qkv() that would come before, of the
  /// same layer, pool and batch, and is then part of this one. Its q_out need not be written.
  const QkvParams* qkv = nullptr;
};

/// out[r] = in[rows[r]]: the tokens whose logits are wanted.
struct GatherParams {
  const void* in = nullptr;       // [T][H]
  const int32_t* rows = nullptr;  // [R]
  void* out = nullptr;            // [R][H]
  int32_t num_rows = 0;
  int32_t hidden = 0;
};

/// dst block = src block, all layers.
struct CopyBlockParams {
  KvPool kv;
  int32_t src = 0;
  int32_t dst = 0;
};

/// Sizes that suit a backend, where the configuration leaves them open.
struct Defaults {
  int32_t max_batch_size = 64;
  int32_t prefill_tokens = 512;      // most prompt tokens in one step
  int32_t mixed_prefill_tokens = 0;  // SchedulerLimits::mixed_prefill_tokens
  double pool_fraction = 0.8;    // of the memory left after weights and workspace, for the KV pool
  size_t pool_bytes = SIZE_MAX;  // most for the KV pool
  bool pool_to_need = false;     // no more than max_batch_size sequences of session_len need
  size_t logit_bytes = size_t{32} << 20;  // of logits that are computed at a time
};

/// A backend: memory, weights and operations. `self` is passed to every function.
struct Ops {
  const char* name = "";  // "cpu", "cuda:0"
  DType act_dtype = DType::kF32;
  int32_t num_threads = 0;  // of the host that compute; 0 where a device does
  Defaults defaults;
  void* self = nullptr;

  // Memory. alloc returns zeroed memory aligned to 64 bytes or throws Error(kOutOfMemory).
  void* (*alloc)(void* self, size_t bytes) = nullptr;
  void (*release)(void* self, void* ptr) = nullptr;
  size_t (*free_memory)(void* self) = nullptr;   // bytes that can still be allocated
  size_t (*total_memory)(void* self) = nullptr;  // bytes there are, free or not
  /// Bytes that the operations hold between calls beside what alloc gave; null = none to speak of.
  size_t (*scratch_bytes)(void* self) = nullptr;
  void (*upload)(void* self, void* dst, const void* host, size_t bytes, Stream) = nullptr;
  void (*download)(void* self, void* host, const void* src, size_t bytes, Stream) = nullptr;
  void (*synchronize)(void* self, Stream) = nullptr;
  /// A backend that works behind the caller's back: wait(mark()) returns when all that was queued
  /// before the mark is done and its downloads have arrived, whatever was queued since. At most two
  /// marks may be waited for at a time. Both null where every function returns when it is done.
  uint64_t (*mark)(void* self, Stream) = nullptr;
  void (*wait)(void* self, uint64_t mark) = nullptr;

  /// Stacks the pieces into one weight of in_features columns in the backend's layout. `bias`: [N]
  /// host floats or null. All pieces have one dtype. `silu_mul`: the pieces are gate and up, and
  /// the weight will be used with LinearParams::silu_mul, so the backend may interleave them.
  LinearWeight (*make_linear)(void* self, const WeightPiece* pieces, int32_t count,
                              int64_t in_features, const float* bias, bool silu_mul) = nullptr;
  void (*release_linear)(void* self, LinearWeight* weight) = nullptr;

  void (*embed)(void* self, const EmbedParams&, Stream) = nullptr;
  void (*linear)(void* self, const LinearParams&, Stream) = nullptr;
  void (*rope)(void* self, const RopeParams&, Stream) = nullptr;
  void (*qkv)(void* self, const QkvParams&, Stream) = nullptr;
  void (*attention)(void* self, const AttentionParams&, Stream) = nullptr;
  /// Whether attention() shall do the work of this qkv(), which follows a product with such a
  /// weight. Pointers, those of the batch too, do not matter. Null: never.
  bool (*attention_makes_qkv)(void* self, const QkvParams&,
                              const LinearWeight& projection) = nullptr;
  void (*gather)(void* self, const GatherParams&, Stream) = nullptr;
  void (*copy_block)(void* self, const CopyBlockParams&, Stream) = nullptr;
  void (*sample)(void* self, const SampleParams&, Stream) = nullptr;

  /// Runs body(context), whose operations are the same, on the same memory, whenever `key` is
  /// given: a backend records them once and replays the record. Null where that gains nothing.
  void (*replay)(void* self, uint64_t key, void (*body)(void* context), void* context,
                 Stream) = nullptr;

  void (*destroy)(void* self) = nullptr;
};

/// The portable backend with `num_threads` threads, the caller's included (0 = the cores this
/// process may run on). Release with ops.destroy(ops.self).
Ops cpu_ops(int32_t num_threads);

}  // namespace treadle::ops
