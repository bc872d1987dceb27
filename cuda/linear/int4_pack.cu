#include "common/dispatch.h"
#include "common/ptx.cuh"
#include "common/vec.cuh"
#include "linear/int4_dequant.cuh"
#include "linear/int4_pack.h"

namespace treadle::cuda::int4 {
namespace {

constexpr int kThreads = 256;

unsigned blocks_for(size_t threads) {
  return static_cast<unsigned>((threads + kThreads - 1) / kThreads);
}

/// A thread for every lane of every tile.
__global__ void __launch_bounds__(kThreads)
    pack_kernel(const Layout layout, const Unpacked from, uint4* out) {
  const size_t index = size_t(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= size_t(layout.tiles) * layout.k_tiles * kLanes) return;
  const int lane = static_cast<int>(index % kLanes);
  const int k_tile = static_cast<int>(index / kLanes % layout.k_tiles);
  const int tile = static_cast<int>(index / kLanes / layout.k_tiles);
  const size_t row_bytes = size_t(layout.k) / 2;
  const auto nibble = [&](int row, int column) -> uint32_t {
    if (row < 0 || column >= layout.k) return 0;
    if (from.order != nullptr) column = from.order[column];
    return from.q[row * row_bytes + column / 2] >> (column % 2 * 4) & 15U;
  };
  const int rows[2] = {layout.source_row(tile, lane / 4), layout.source_row(tile, lane / 4 + 8)};
  uint32_t words[4] = {};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int column = k_tile * kTileColumns + j * 16 + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      words[j] |= nibble(rows[i % 2], column + i / 2 % 2 * 8 + i / 4) << (4 * i);
    }
  }
  out[index] = make_uint4(words[0], words[1], words[2], words[3]);
}

__global__ void __launch_bounds__(kThreads)
    pack_groups_kernel(const Layout layout, const Unpacked from, uint2* out) {
  const size_t index = size_t(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= size_t(layout.tiles) * layout.groups * kPairs) return;
  const int r = static_cast<int>(index % kPairs);
  const int group = static_cast<int>(index / kPairs % layout.groups);
  const int tile = static_cast<int>(index / kPairs / layout.groups);
  const auto word = [&](int row) -> uint32_t {
    if (row < 0) return 0;
    const size_t at = size_t(row) * layout.groups + group;
    return group_word(from.scales[at], from.zeros[at]);
  };
  out[index] = make_uint2(word(layout.source_row(tile, r)), word(layout.source_row(tile, r + 8)));
}

/// A thread for every lane of every tile.
template <class T>
__global__ void __launch_bounds__(kThreads)
    dequantise_kernel(const Layout layout, const uint4* q, const uint2* words, int begin, int end,
                      T* out) {
  const size_t index = size_t(blockIdx.x) * kThreads + threadIdx.x;
  grid_dependency_wait();
  if (index >= size_t(end - begin) * layout.k_tiles * kLanes) return;
  const int lane = static_cast<int>(index % kLanes);
  const int k_tile = static_cast<int>(index / kLanes % layout.k_tiles);
  const int tile = begin + static_cast<int>(index / kLanes / layout.k_tiles);
  // Where the rows go: all of these tiles, or their gates followed by their ups.
  T* to[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = lane / 4 + 8 * half;
    size_t row = size_t(tile - begin) * kTileRows + r;
    if (layout.gated) {
      const int columns = min(end * 8, layout.columns()) - begin * 8;
      row = size_t(tile - begin) * 8 + lane / 4 + size_t(half) * columns;
    }
    to[half] = layout.source_row(tile, r) < 0 ? nullptr : out + row * layout.k;
  }
  // Of the 16 columns of one word this lane takes those of its whole quad: 32 bytes of each row.
  const auto* quad = reinterpret_cast<const uint32_t*>(q + size_t(begin) * layout.k_tiles * kLanes +
                                                       index / 4 * 4);
  const int column = k_tile * kTileColumns + lane % 4 * 16;
  if (column >= layout.k) return;
  const uint2 group =
      words[(size_t(tile) * layout.groups + layout.group_of(column)) * kPairs + lane / 4];
  const Zeros<T> zeros(group);
  uint32_t values[2][2][4];  // [row r, r + 8][eight columns][pairs]
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint32_t a[4];
    zeros.unpack(quad[i * 4 + lane % 4], a);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float scale = scale_of(j % 2 == 0 ? group.x : group.y);
      const float low = to_float(__builtin_bit_cast(T, static_cast<uint16_t>(a[j])));
      const float high = to_float(__builtin_bit_cast(T, static_cast<uint16_t>(a[j] >> 16)));
      values[j % 2][j / 2][i] = pack2<T>(low * scale, high * scale);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int eight = 0; eight < 2; ++eight) {
      const int at = column + eight * 8;
      if (to[half] == nullptr || at >= layout.k) continue;
      const uint32_t(&v)[4] = values[half][eight];
      *reinterpret_cast<uint4*>(to[half] + at) = make_uint4(v[0], v[1], v[2], v[3]);
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    gather_columns_kernel(const uint16_t* x, const int32_t* order, uint16_t* out, int k) {
  grid_dependency_launch();
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  const int from = i < k ? order[i] : 0;  // constant
  grid_dependency_wait();
  const size_t row = size_t(blockIdx.y) * k;
  if (i < k) out[row + i] = x[row + from];
}

}  // namespace

void pack(const Layout& layout, const Unpacked& from, void* packed, cudaStream_t stream) {
  const size_t lanes = size_t(layout.tiles) * layout.k_tiles * kLanes;
  const size_t pairs = size_t(layout.tiles) * layout.groups * kPairs;
  if (lanes == 0) return;
  launch("pack int4", pack_kernel, {blocks_for(lanes), kThreads, 0, stream}, layout, from,
         static_cast<uint4*>(packed));
  launch("pack int4 groups", pack_groups_kernel, {blocks_for(pairs), kThreads, 0, stream}, layout,
         from, reinterpret_cast<uint2*>(static_cast<char*>(packed) + layout.q_bytes()));
}

void dequantise(const Layout& layout, const void* packed, int begin, int end, ops::DType act,
                void* out, cudaStream_t stream) {
  const size_t lanes = size_t(end - begin) * layout.k_tiles * kLanes;
  if (lanes == 0) return;
  const auto* words = reinterpret_cast<const uint2*>(words_of(layout, packed));
  with_half_type(act, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch("dequantise int4", dequantise_kernel<T>,
           dependent_launch(blocks_for(lanes), kThreads, stream), layout,
           static_cast<const uint4*>(packed), words, begin, end, static_cast<T*>(out));
  });
}

void gather_columns(const void* x, const int32_t* order, void* out, int32_t num_tokens, int64_t k,
                    cudaStream_t stream) {
  if (num_tokens <= 0) return;
  const dim3 grid(blocks_for(static_cast<size_t>(k)), static_cast<unsigned>(num_tokens));
  launch("gather columns", gather_columns_kernel, dependent_launch(grid, kThreads, stream),
         static_cast<const uint16_t*>(x), order, static_cast<uint16_t*>(out), static_cast<int>(k));
}

}  // namespace treadle::cuda::int4
