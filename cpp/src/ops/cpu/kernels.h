// The inner loops, one table of them for each instruction set: what one thread does with its piece
// of an operation. The files beside this one that are named for the operations cut them into
// pieces.
//
// Every output of a kernel is computed by one fixed chain of operations that does not depend on how
// the work was cut, so results are bit-identical for any number of threads and any batch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/cpu/isa.h"
#include "ops/ops.h"

namespace treadle::ops::cpu {

/// Columns of a weight panel: a packed weight is panels[ceil(N / 64)][K][64], zero padded.
constexpr int kPanel = 64;

/// Rows that one LinearTask may have.
constexpr int kMaxTaskRows = 128;

/// Depth of the panel slice that all row tiles go through before the next slice: 128 KiB of 16-bit
/// weights.
constexpr int kSliceDepth = 1024;

/// The group of input k: one of Int4Groups.
struct Int4Task {
  int64_t group_size = 0;  // 0 = the panels are not int4
  const int32_t* group_of = nullptr;
};

/// Bytes of an int4 panel: [K][32], columns c and c + 32 in the low and high half of byte c; then
/// the scales [groups][64] and the zeros [groups][64], as floats.
constexpr size_t int4_panel_bytes(int64_t in_features, int64_t group_size) {
  return static_cast<size_t>(in_features * (kPanel / 2) +
                             in_features / group_size * 2 * kPanel * int64_t{sizeof(float)});
}

/// y[r][c] = sum over k, in order, of x[r][k] * panel[k][c], + bias[c].
struct LinearTask {
  const float* x = nullptr;  // [rows][in_features]
  int64_t in_features = 0;
  int32_t rows = 0;
  const void* panels = nullptr;  // num_panels of [in_features][64], one after the other
  int32_t num_panels = 0;        // 1 or 2
  DType dtype = DType::kF32;     // of the panels
  Int4Task int4;                 // of the panels, in place of dtype
  bool silu_mul = false;         // the two panels are gate and up: y = silu(gate) * up
  const float* bias = nullptr;   // [num_panels * 64] or null
  float* y = nullptr;            // [rows][ldy]
  int64_t ldy = 0;
  bool add = false;          // y += the product; not with silu_mul
  int32_t columns = 0;       // columns of y to write
  float* scratch = nullptr;  // [linear_scratch_floats()]
};

constexpr size_t linear_scratch_floats() {
  return size_t{kPanel} * (2 * kMaxTaskRows + kSliceDepth);
}

/// out = x / sqrt(mean(x^2) + eps) * weight, row by row.
struct NormTask {
  const float* x = nullptr;  // [rows][width]
  const float* weight = nullptr;
  float eps = 0.0F;
  float* out = nullptr;  // [rows][width]
  int32_t width = 0;
};

/// Keys after which attention closes a partial result. The partial results of a row are merged in
/// order, whoever computed them.
constexpr int kSegmentKeys = 512;

/// Queries [token_begin, token_begin + tokens) of one sequence, all query heads of one KV head.
struct AttentionTask {
  const AttentionParams* params = nullptr;
  int32_t sequence = 0;
  int32_t kv_head = 0;
  int32_t token_begin = 0;  // in the flat batch
  int32_t tokens = 0;
  float* scratch = nullptr;  // [attention_scratch_floats()]
};

/// Columns of V are handled in whole vectors of up to 16 floats.
constexpr int padded_head_dim(int head_dim) { return (head_dim + 15) / 16 * 16; }

/// Floats of one partial result of `rows` rows (a row is one query head of one token).
constexpr size_t attention_state_floats(int rows, int head_dim) {
  return size_t(rows) * size_t(padded_head_dim(head_dim) + 2);
}

/// Scaled queries, scores, a converted block of K and of V, two partial results; each padded to
/// whole vectors.
constexpr size_t attention_scratch_floats(int rows, int head_dim) {
  return size_t(rows) * size_t(head_dim + kBlockTokens) +
         size_t{kBlockTokens} * size_t(head_dim + padded_head_dim(head_dim)) +
         2 * attention_state_floats(rows, head_dim) + size_t{6} * 16;
}

struct Kernels {
  const char* name = "";

  void (*linear)(const LinearTask&) = nullptr;

  /// All keys, result to params->out.
  void (*attention)(const AttentionTask&) = nullptr;
  /// Keys of one segment, partial result to `state`.
  void (*attention_segment)(const AttentionTask&, int segment, float* state) = nullptr;
  /// Merges `count` states in order, `stride` floats apart, and writes params->out.
  void (*attention_merge)(const AttentionTask&, const float* states, size_t stride,
                          int count) = nullptr;

  // Rows, or tokens, [begin, end).
  void (*rms_norm)(const NormTask&, int64_t begin, int64_t end) = nullptr;
  /// scratch: [2 * head_dim + rotary_dim] floats.
  void (*qkv)(const QkvParams&, int64_t begin, int64_t end, float* scratch) = nullptr;

  /// out[i] = float(in[i * stride]).
  void (*to_float)(DType dtype, const void* in, int64_t stride, int64_t count,
                   float* out) = nullptr;
  /// out[i] = exp(in[i]); for the tests of the function that softmax and silu use.
  void (*exp)(const float* in, int64_t count, float* out) = nullptr;
};

/// Null where the instruction set is not built in.
const Kernels* plain_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const Kernels* kernels_of(Isa isa);

}  // namespace treadle::ops::cpu
