// Linear layers: weights as the checkpoint stores them, [N][K] of act; paths for few tokens and for
// gated layers of many, and cuBLASLt for the rest. 4-bit weights have a file of their own.
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "backend.h"
#include "common/device.h"
#include "common/dispatch.h"
#include "elementwise/elementwise.h"
#include "linear/convert.h"
#include "linear/int4_linear.h"
#include "linear/int4_pack.h"
#include "linear/skinny.h"
#include "linear/stream_linear.h"
#include "linear/tile_linear.h"
#include "treadle/error.h"

namespace treadle::cuda {
namespace {

// Layers go through in pieces of so many tokens, which bounds the scratch for normalised or
// gathered inputs and for gates and ups.
constexpr int64_t kPieceTokens = 2048;

/// Dense layers that leave no gates and ups: larger pieces are up to 1% faster, and Hopper GPUs
/// have the memory.
int64_t large_piece_tokens() { return device_info().capability == 90 ? 8192 : kPieceTokens; }

/// The bias twice: [N] floats, then [N] of act for the epilogue of cuBLASLt.
void upload_bias(Backend& b, const float* bias, ops::LinearWeight& w) {
  const auto count = static_cast<size_t>(w.out_features);
  std::vector<char> host(count * (sizeof(float) + 2));
  std::memcpy(host.data(), bias, count * sizeof(float));
  convert(ops::DType::kF32, bias, b.act, host.data() + count * sizeof(float), count);
  DeviceMemory memory = make_device_memory(host.size());
  b.uploads.upload(memory.get(), host.data(), host.size(), b.own_stream.get());
  w.bias = static_cast<float*>(memory.release());
  w.bytes += static_cast<int64_t>(host.size());
}

const void* normalise(Backend& b, const ops::LinearParams& p, cudaStream_t stream) {
  void* out = b.normed.memory.get();
  rms_norm({.x = p.x,
            .weight = p.norm,
            .eps = p.norm_eps,
            .out = out,
            .rows = p.num_tokens,
            .width = p.weight->in_features},
           b.act, stream);
  return out;
}

/// x with its columns in the order of the weight's.
const void* gather(Backend& b, const ops::LinearParams& p, cudaStream_t stream) {
  void* out = b.gathered.memory.get();
  int4::gather_columns(p.x, p.weight->group_of, out, p.num_tokens, p.weight->in_features, stream);
  return out;
}

ops::LinearWeight make_dense(Backend& b, const ops::WeightPiece* pieces, int32_t count,
                             int64_t in_features) {
  ops::LinearWeight w;
  w.in_features = in_features;
  w.dtype = b.act;
  for (int32_t i = 0; i < count; ++i) w.out_features += pieces[i].rows;
  w.bytes = w.out_features * in_features * 2;
  const auto k = static_cast<size_t>(in_features);
  DeviceMemory data = make_device_memory(static_cast<size_t>(w.bytes));
  char* to = static_cast<char*>(data.get());
  for (int32_t i = 0; i < count; ++i) {
    const ops::WeightPiece& piece = pieces[i];
    const size_t elements = static_cast<size_t>(piece.rows) * k;
    const auto* from = static_cast<const char*>(piece.data);
    const size_t element = ops::dtype_size(piece.dtype);
    b.weights.upload(to, elements, 2, b.own_stream.get(),
                     [&](size_t first, size_t n, char* pinned) {
                       convert(piece.dtype, from + first * element, b.act, pinned, n);
                     });
    to += elements * 2;
  }
  w.data = data.release();
  return w;
}

/// A piece of the layer without its norm.
void product(Backend& b, const ops::LinearParams& p, cudaStream_t stream) {
  if (p.weight->format == ops::WeightFormat::kInt4Group) return int4_product(b, p, stream);
  if (supports_skinny_linear(p)) return skinny_linear(p, b.act, stream);
  if (prefers_stream_linear(p)) return stream_linear(p, b.act, b.streaming, stream);
  const ops::LinearWeight& w = *p.weight;
  const void* bias = w.bias;
  if (bias != nullptr && !p.float_output) bias = w.bias + w.out_features;
  void* y = p.silu_mul ? b.gate_up.memory.get() : p.y;
  b.matmul.run({.x = p.x,
                .w = w.data,
                .bias = bias,
                .y = y,
                .m = p.num_tokens,
                .spare_rows = p.silu_mul ? 0 : p.spare_rows,
                .n = w.out_features,
                .k = w.in_features,
                .float_output = p.float_output,
                .add = p.add},
               stream);
  if (p.silu_mul) silu_mul(y, p.y, p.num_tokens, w.out_features / 2, b.act, stream);
}

}  // namespace

ops::LinearWeight make_linear(Backend& b, const ops::WeightPiece* pieces, int32_t count,
                              int64_t in_features, const float* bias, bool silu_mul) {
  const bool four_bits = count > 0 && pieces[0].int4 != nullptr;
  ops::LinearWeight w = four_bits ? make_int4_linear(b, pieces, count, in_features, silu_mul)
                                  : make_dense(b, pieces, count, in_features);
  DeviceMemory data(w.data);
  DeviceMemory order(w.group_of);
  const cudaStream_t stream = b.own_stream.get();
  // Now, because a step that is being recorded cannot allocate.
  const int64_t tokens = four_bits ? kPieceTokens : large_piece_tokens();
  const size_t x_bytes = static_cast<size_t>(tokens * in_features) * 2;
  b.normed.reserve(x_bytes, stream);
  if (w.group_of != nullptr) b.gathered.reserve(x_bytes, stream);
  if (silu_mul) {
    b.gate_up.reserve(static_cast<size_t>(kPieceTokens * w.out_features) * 2, stream);
  }
  if (bias != nullptr) upload_bias(b, bias, w);
  (void)data.release();
  (void)order.release();
  return w;
}

void linear(Backend& b, const ops::LinearParams& p, cudaStream_t stream) {
  if (p.num_tokens <= 0 || p.weight->out_features <= 0) return;
  const int64_t columns = p.silu_mul ? p.weight->out_features / 2 : p.weight->out_features;
  const int64_t x_bytes = p.weight->in_features * 2;
  const int64_t y_bytes = columns * (p.float_output ? 4 : 2);
  const bool tiled = prefers_tile_linear(p);
  const bool large = p.weight->format == ops::WeightFormat::kDense && (!p.silu_mul || tiled);
  const int64_t most = large ? large_piece_tokens() : kPieceTokens;
  // Equal chunks, in whole tiles.
  const int64_t chunks = (p.num_tokens + most - 1) / most;
  const int64_t tokens = ((p.num_tokens + chunks - 1) / chunks + 15) / 16 * 16;
  for (int64_t begin = 0; begin < p.num_tokens; begin += tokens) {
    ops::LinearParams chunk = p;
    chunk.num_tokens = static_cast<int32_t>(std::min(tokens, p.num_tokens - begin));
    if (begin + tokens < p.num_tokens) chunk.spare_rows = 0;  // there the next chunk begins
    chunk.x = static_cast<const char*>(p.x) + begin * x_bytes;
    chunk.y = static_cast<char*>(p.y) + begin * y_bytes;
    if (p.norm != nullptr) chunk.x = normalise(b, chunk, stream);
    if (p.weight->group_of != nullptr) chunk.x = gather(b, chunk, stream);
    if (tiled) {
      tile_linear(chunk, b.act, stream);
    } else {
      product(b, chunk, stream);
    }
  }
}

}  // namespace treadle::cuda
