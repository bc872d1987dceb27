#include "linear/int4_linear.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "elementwise/elementwise.h"
#include "linear/int4_mma.h"
#include "linear/int4_pack.h"
#include "linear/int4_skinny.h"
#include "linear/int4_wgmma.h"
#include "treadle/error.h"

namespace treadle::cuda {
namespace {

// Weights are dequantised in parts of so many bytes, of which each stays in the L2 cache.
constexpr size_t kDequantisedBytes = size_t{32} << 20;
// Reading the packed weights so often takes less time than dequantising them once.
constexpr int32_t kSkinnyPasses = 6;

[[noreturn]] void throw_internal(const std::string& what) {
  throw Error(ErrorCode::kInternal, "int4 weight: " + what);
}

void check_pieces(const ops::WeightPiece* pieces, int32_t count) {
  const ops::Int4Groups& first = *pieces[0].int4;
  for (int32_t i = 0; i < count; ++i) {
    if (pieces[i].int4 == nullptr || pieces[i].dtype != ops::DType::kU8) {
      throw_internal("piece " + std::to_string(i) + " is not 4-bit");
    }
    if (pieces[i].int4->group_size != first.group_size ||
        pieces[i].int4->group_of != first.group_of) {
      throw_internal("piece " + std::to_string(i) + " has other groups than piece 0");
    }
  }
}

/// The columns in the order of their groups.
std::vector<int32_t> order_of(const int32_t* group_of, int64_t k, int64_t group_size) {
  std::vector<int32_t> order(static_cast<size_t>(k));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return group_of[a] < group_of[b]; });
  for (int64_t i = 0; i < k; ++i) {
    const int64_t group = i / group_size;
    if (group_of[order[static_cast<size_t>(i)]] != group) {
      throw Error(ErrorCode::kUnsupported,
                  "CUDA: g_idx of a 4-bit layer: group " + std::to_string(group) + " must have " +
                      std::to_string(group_size) + " of the inputs, like every group");
    }
  }
  return order;
}

class Upload {
 public:
  Upload(Backend& b, size_t bytes) : b_(b), memory_(make_device_memory(bytes)) {}
  void append(const void* host, size_t bytes) {
    const auto* from = static_cast<const char*>(host);
    b_.weights.upload(
        static_cast<char*>(memory_.get()) + used_, bytes, 1, b_.own_stream.get(),
        [from](size_t first, size_t count, char* to) { std::memcpy(to, from + first, count); });
    used_ += bytes;
  }
  template <class T>
  const T* as() const {
    return static_cast<const T*>(memory_.get());
  }
  void* release() { return memory_.release(); }

 private:
  Backend& b_;
  DeviceMemory memory_;
  size_t used_ = 0;
};

/// Tiles that are dequantised at a time.
int part_tiles(const int4::Layout& layout) {
  const size_t tile = size_t{int4::kTileRows} * size_t(layout.k) * 2;
  return static_cast<int>(std::clamp<size_t>(kDequantisedBytes / tile, 1, size_t(layout.tiles)));
}

/// By way of 16-bit weights: for many tokens the product takes far longer than their making.
void dequantised_product(Backend& b, const ops::LinearParams& p, cudaStream_t stream) {
  const ops::LinearWeight& w = *p.weight;
  const int4::Layout layout = int4::layout_of(w, p.silu_mul);
  const int part = part_tiles(layout);
  auto* values = static_cast<char*>(b.dequantised.memory.get());
  void* y = p.silu_mul ? b.gate_up.memory.get() : p.y;
  // Rows [begin, begin + rows) of W, which lie at `from`.
  const auto multiply = [&](const char* from, int begin, int rows) {
    const void* bias = nullptr;
    if (w.bias != nullptr) {  // see upload_bias
      bias = p.float_output
                 ? static_cast<const void*>(w.bias + begin)
                 : reinterpret_cast<const char*>(w.bias + w.out_features) + size_t(begin) * 2;
    }
    b.matmul.run({.x = p.x,
                  .w = from,
                  .bias = bias,
                  .y = static_cast<char*>(y) + size_t(begin) * (p.float_output ? 4 : 2),
                  .m = p.num_tokens,
                  .n = rows,
                  .k = layout.k,
                  .ldy = layout.n,
                  .float_output = p.float_output,
                  .add = p.add},
                 stream);
  };
  for (int tile = 0; tile < layout.tiles; tile += part) {
    const int end = std::min(tile + part, layout.tiles);
    int4::dequantise(layout, w.data, tile, end, b.act, values, stream);
    const int tile_columns = int4::kTileRows / (p.silu_mul ? 2 : 1);
    const int begin = tile * tile_columns;
    const int rows = std::min(end * tile_columns, layout.columns()) - begin;
    multiply(values, begin, rows);
    if (p.silu_mul) {
      multiply(values + size_t(rows) * size_t(layout.k) * 2, layout.columns() + begin, rows);
    }
  }
  if (p.silu_mul) silu_mul(y, p.y, p.num_tokens, layout.columns(), b.act, stream);
}

}  // namespace

ops::LinearWeight make_int4_linear(Backend& b, const ops::WeightPiece* pieces, int32_t count,
                                   int64_t in_features, bool silu_mul) {
  check_pieces(pieces, count);
  const ops::Int4Groups& groups = *pieces[0].int4;
  if (!int4::supports_groups(in_features, groups.group_size)) {
    throw Error(ErrorCode::kUnsupported,
                "CUDA: 4-bit groups of " + std::to_string(groups.group_size) + " of " +
                    std::to_string(in_features) + " inputs; use groups of 32, 64 or 128, or one");
  }
  ops::LinearWeight w;
  w.format = ops::WeightFormat::kInt4Group;
  w.dtype = ops::DType::kU8;
  w.in_features = in_features;
  w.group_size = groups.group_size;
  for (int32_t i = 0; i < count; ++i) w.out_features += pieces[i].rows;
  const int4::Layout layout = int4::layout_of(w, silu_mul);
  const auto n = static_cast<size_t>(w.out_features);
  const auto row_bytes = static_cast<size_t>(in_features) / 2;
  const auto row_groups = static_cast<size_t>(layout.groups);

  Upload q(b, n * row_bytes);
  Upload scales(b, n * row_groups * sizeof(float));
  Upload zeros(b, n * row_groups);
  const size_t order_bytes = groups.group_of != nullptr ? size_t(in_features) * sizeof(int32_t) : 0;
  Upload order(b, order_bytes);
  for (int32_t i = 0; i < count; ++i) {
    const auto rows = static_cast<size_t>(pieces[i].rows);
    q.append(pieces[i].data, rows * row_bytes);
    scales.append(pieces[i].int4->scales, rows * row_groups * sizeof(float));
    zeros.append(pieces[i].int4->zeros, rows * row_groups);
  }
  if (groups.group_of != nullptr) {
    const std::vector<int32_t> columns = order_of(groups.group_of, in_features, w.group_size);
    order.append(columns.data(), columns.size() * sizeof(int32_t));
  }
  DeviceMemory packed = make_device_memory(layout.bytes());
  const cudaStream_t stream = b.own_stream.get();
  int4::pack(layout,
             {.q = q.as<uint8_t>(),
              .scales = scales.as<float>(),
              .zeros = zeros.as<uint8_t>(),
              .order = order.as<int32_t>()},
             packed.get(), stream);
  check(cudaStreamSynchronize(stream), "pack int4 weights");
  // Now, because a step that is being recorded cannot allocate.
  b.dequantised.reserve(size_t(part_tiles(layout)) * int4::kTileRows * size_t(layout.k) * 2,
                        stream);
  w.group_of = static_cast<int32_t*>(order.release());
  w.data = packed.release();
  w.bytes = static_cast<int64_t>(layout.bytes() + order_bytes);
  return w;
}

void int4_product(Backend& b, const ops::LinearParams& p, cudaStream_t stream) {
  if (p.num_tokens > kInt4SkinnyTokens && supports_int4_wgmma(p)) {
    return int4_wgmma(p, b.act, b.streaming, stream);
  }
  if (p.num_tokens > kInt4SkinnyTokens && prefers_int4_mma(p)) {
    return int4_mma(p, b.act, b.streaming, stream);
  }
  if (p.num_tokens > kSkinnyPasses * kInt4SkinnyTokens || !supports_int4_skinny(p)) {
    return dequantised_product(b, p, stream);
  }
  const int64_t columns = p.weight->out_features / (p.silu_mul ? 2 : 1);
  for (int32_t begin = 0; begin < p.num_tokens; begin += kInt4SkinnyTokens) {
    ops::LinearParams pass = p;
    pass.num_tokens = std::min(kInt4SkinnyTokens, p.num_tokens - begin);
    pass.x = static_cast<const char*>(p.x) + begin * p.weight->in_features * 2;
    pass.y = static_cast<char*>(p.y) + begin * columns * (p.float_output ? 4 : 2);
    int4_skinny_linear(pass, b.act, stream);
  }
}

}  // namespace treadle::cuda
