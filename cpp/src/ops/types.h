// Types that the seam's parameter structs are made of. Plain data; nothing here owns memory.
#pragma once

#include <cstddef>
#include <cstdint>

namespace treadle::ops {

enum class DType : uint8_t { kF32, kF16, kBF16, kI32, kI8, kU8 };

constexpr size_t dtype_size(DType t) {
  switch (t) {
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kI8:
    case DType::kU8:
      return 1;
  }
  return 0;
}

/// "float32", "float16", "bfloat16", "int32", "int8" or "uint8".
const char* dtype_name(DType t) noexcept;

/// Order in which work is done; null = the device's only one. The CPU runs everything at once.
struct Stream {
  void* handle = nullptr;
};

enum class WeightFormat : uint8_t {
  kDense,
  kInt4Group,  // 4 bits, with a scale and a zero for each group of input features
};

/// Groups of 4-bit weights, whatever format they come from: w[n][k] = (q[n][k] - zeros[n][g]) *
/// scales[n][g] with g = group_of[k], or k / group_size. q[n][k] is the low half of byte
/// [n][k / 2] where k is even, else the high half. There are in_features / group_size groups.
struct Int4Groups {
  const float* scales = nullptr;      // [rows][groups]
  const uint8_t* zeros = nullptr;     // [rows][groups], 0 to 16
  const int32_t* group_of = nullptr;  // [in_features] or null; one array for all pieces of a weight
  int64_t group_size = 0;
};

/// Rows [row, row + rows) of a matrix as a checkpoint stores it: row-major [*, in_features].
/// A fused weight (QKV, gate and up) is a list of such pieces, stacked in order, of one format.
struct WeightPiece {
  const void* data = nullptr;  // host memory (usually a mapped file): first element of the piece
  DType dtype = DType::kF32;   // kF32, kF16 or kBF16; kU8 where int4 is set
  int64_t rows = 0;            // output features of this piece
  const Int4Groups* int4 = nullptr;  // kInt4Group: data is [rows][in_features / 2] bytes
};

/// A linear layer's weight in the form the backend computes with. Made by Ops::make_linear.
struct LinearWeight {
  WeightFormat format = WeightFormat::kDense;
  DType dtype = DType::kF32;    // of the stored elements
  int64_t in_features = 0;      // K
  int64_t out_features = 0;     // N
  void* data = nullptr;         // backend's own layout, made by make_linear
  const float* bias = nullptr;  // [N] in device memory, or null
  int64_t bytes = 0;            // of data, bias and group_of
  int64_t group_size = 0;       // kInt4Group: as in Int4Groups
  int32_t* group_of =
      nullptr;  // kInt4Group: [K] in device memory and the backend's own form, or null
};

/// Tokens in a KV block. One block holds all layers of these tokens.
constexpr int32_t kBlockTokens = 64;

/// What one token's K or V of one head is quantised with: value = q * scale + zero, q an int8.
/// float, because values of bfloat16 models need not fit a half, and zero may be far larger than
/// the range of the values, which a half would then not resolve.
struct KvScale {
  float scale;
  float zero;
};

/// The KV pool: blocks[num_blocks][num_layers][2 (K, V)][kv_heads][64 * head_dim].
/// K and V of one (block, layer, head) are 64 x head_dim elements in an order that is the backend's
/// own: the rest of the engine only ever copies whole blocks. The CPU keeps K as [head_dim][64], so
/// that scores of 64 keys are computed without a transpose, and V as [64][head_dim].
///
/// With dtype kI8 each block is its int8 elements, followed by the parameters that turn them back:
/// KvScale[num_layers][2 (K, V)][kv_heads][64]. So a block still moves in one copy. With
/// static_scales the pool has them once, behind its last block and with 64 equal ones for each
/// head: whoever reads finds them as he would a block's, and who writes quantises with what is
/// there.
struct KvPool {
  void* base = nullptr;
  DType dtype = DType::kF16;
  bool static_scales =
      false;  // kI8: calibrated parameters of each head instead of each token's own
  int32_t num_blocks = 0;
  int32_t num_layers = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;

  constexpr size_t head_elems() const { return size_t{kBlockTokens} * head_dim; }
  constexpr size_t layer_elems() const { return 2 * size_t(kv_heads) * head_elems(); }
  constexpr size_t block_elems() const { return size_t(num_layers) * layer_elems(); }
  /// KvScales of a block, or of all blocks.
  constexpr size_t num_scales() const {
    return dtype == DType::kI8 ? 2 * size_t(num_layers) * size_t(kv_heads) * kBlockTokens : 0;
  }
  constexpr size_t block_bytes() const {
    return block_elems() * dtype_size(dtype) + (static_scales ? 0 : num_scales() * sizeof(KvScale));
  }
  /// What static_scales take beside the blocks.
  constexpr size_t shared_bytes() const {
    return static_scales ? num_scales() * sizeof(KvScale) : 0;
  }
  constexpr size_t bytes() const { return size_t(num_blocks) * block_bytes() + shared_bytes(); }
  /// Bytes from base to the KvScales of block 0, and from a block's to the next one's.
  constexpr size_t scales_begin() const {
    return static_scales ? size_t(num_blocks) * block_bytes() : block_elems() * dtype_size(dtype);
  }
  constexpr size_t scales_stride() const { return static_scales ? 0 : block_bytes(); }
  /// Bytes from base to the 64 KvScales of a block's layer, part (0 = K, 1 = V) and head.
  constexpr size_t scales_at(int32_t block, int32_t layer, int32_t part, int32_t head) const {
    const size_t index = (size_t(layer) * 2 + size_t(part)) * size_t(kv_heads) + size_t(head);
    return scales_begin() + size_t(block) * scales_stride() +
           index * kBlockTokens * sizeof(KvScale);
  }
};

/// The sequences of one step. The flat token batch is [decode tokens | prompt chunks]: sequences
/// 0..num_decode-1 bring one token each, the others query_len[s] >= 1.
/// All arrays live where the backend computes. T tokens, S sequences.
///
/// A decode sequence with context_len 0 and block -1 is padding, which keeps a recorded step's
/// shape (Ops::replay): its K and V go nowhere and its attention is zero.
struct SequenceBatch {
  int32_t num_tokens = 0;     // T
  int32_t num_sequences = 0;  // S
  int32_t num_decode = 0;     // the first of them are single decode tokens
  int32_t max_query_len = 0;
  int32_t max_context_len = 0;
  const int32_t* query_begin = nullptr;   // [S + 1] first token of each sequence; [S] = T
  const int32_t* context_len = nullptr;   // [S] keys of the sequence once this step's are written
  const int32_t* block_tables = nullptr;  // [S][block_table_stride] block ids
  int32_t block_table_stride = 0;
  const int32_t* token_sequence = nullptr;  // [T] which sequence
  const int32_t* positions = nullptr;       // [T] position in the sequence, from 0
};

}  // namespace treadle::ops
