// What becomes of a streamed product's sums: bias, addition, gate, and the stores.
#pragma once

#include <type_traits>

#include "common/ptx.cuh"
#include "common/vec.cuh"

namespace treadle::cuda::stream {

struct Output {
  void* y;            // [m][columns]
  const float* bias;  // [n] or null
  int n;              // rows of W
  int columns;        // n, or n / 2 for gated activation
  int m;              // tokens
  bool add;           // to y
};

/// The 8x8 16-bit matrix that the warp holds (two neighbours of row lane / 4 in each lane),
/// transposed.
__device__ __forceinline__ uint32_t transpose(uint32_t pair) {
  uint32_t d;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(d) : "r"(pair));
  return d;
}
template <class T>
__device__ __forceinline__ float low_of(uint32_t pair) {
  return to_float(__builtin_bit_cast(T, static_cast<uint16_t>(pair)));
}
template <class T>
__device__ __forceinline__ float high_of(uint32_t pair) {
  return to_float(__builtin_bit_cast(T, static_cast<uint16_t>(pair >> 16)));
}

/// The 4x4 matrix of registers that four neighbouring lanes hold, transposed.
__device__ __forceinline__ void transpose_quad(uint32_t (&r)[4]) {
  const auto swap = [](uint32_t& low, uint32_t& high, int lanes) {
    const bool upper = (threadIdx.x & lanes) != 0;
    const uint32_t got = __shfl_xor_sync(0xffffffffU, upper ? low : high, lanes);
    if (upper) {
      low = got;
    } else {
      high = got;
    }
  };
  swap(r[0], r[1], 1);
  swap(r[2], r[3], 1);
  swap(r[0], r[2], 2);
  swap(r[1], r[3], 2);
}

/// Stores some of the sums that a warp has of a tile, which is 16 rows of W from `row` on, or when
/// gated 8 columns of y from row / 2 on: kCount groups of 8 tokens, every `stride`-th from the
/// `first` group of y on. Rows of y are aligned to 16 bytes.
///
/// Sums are pairs of tokens of one column; memory wants columns of one token. So they are
/// transposed to pieces of two columns, four of which, in the lanes of a quad, are a chunk of 16
/// bytes. Four chunks are transposed once more, so that each lane has one.
template <class T, class Out, bool kGated, int kCount>
__device__ __forceinline__ void store(const Output& a, const float (&sums)[kCount][4], int row,
                                      int first, int stride) {
  const int lane = threadIdx.x % 32;
  const int group = lane / 4;
  const int quad = lane % 4;
  float bias[2] = {0.0F, 0.0F};
  if (a.bias != nullptr) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = kGated ? row / 2 + group + half * a.columns : row + group + half * 8;
      if (at < a.n) bias[half] = a.bias[at];
    }
  }
  if constexpr (std::is_same_v<Out, float>) {
    float* y = static_cast<float*>(a.y);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int token = 8 * (first + i * stride) + 2 * quad + j % 2;
        const int column = row + group + j / 2 * 8;
        if (token < a.m && column < a.n) y[size_t(token) * a.n + column] = sums[i][j] + bias[j / 2];
      }
    }
  } else {
    constexpr int kChunks = kGated ? kCount : 2 * kCount;
    const auto chunk_of = [&](int c) {  // null outside y
      const int token = 8 * (first + (kGated ? c : c / 2) * stride) + group;
      const int column = kGated ? row / 2 : row + c % 2 * 8;
      return token < a.m && column < a.columns
                 ? static_cast<T*>(a.y) + size_t(token) * a.columns + column
                 : nullptr;
    };
    const auto piece_of = [&](int c, uint32_t old) {  // of chunk c, added to the piece `old`
      float low;
      float high;
      if constexpr (kGated) {
        // As the two kernels of a larger batch do it: gate and up are rounded on the way.
        const auto h = [&](int j) {
          return silu(to_float(from_float<T>(sums[c][j] + bias[0]))) *
                 to_float(from_float<T>(sums[c][2 + j] + bias[1]));
        };
        low = h(0);
        high = h(1);
      } else {
        low = sums[c / 2][c % 2 * 2] + bias[c % 2];
        high = sums[c / 2][c % 2 * 2 + 1] + bias[c % 2];
        if (a.add) {
          const uint32_t pair = transpose(old);
          low += low_of<T>(pair);
          high += high_of<T>(pair);
        }
      }
      return transpose(pack2<T>(low, high));
    };
    if constexpr (kChunks % 4 == 0) {
      constexpr int kBatch = kChunks % 8 == 0 ? 2 : 1;  // fours whose loads wait together
#pragma unroll
      for (int begin = 0; begin < kChunks; begin += 4 * kBatch) {
        uint32_t pieces[kBatch][4] = {};
        if (!kGated && a.add) {
#pragma unroll
          for (int b = 0; b < kBatch; ++b) {
            const T* from = chunk_of(begin + 4 * b + quad);
            const uint4 v =
                from != nullptr ? *reinterpret_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
            pieces[b][0] = v.x;
            pieces[b][1] = v.y;
            pieces[b][2] = v.z;
            pieces[b][3] = v.w;
          }
#pragma unroll
          for (int b = 0; b < kBatch; ++b) transpose_quad(pieces[b]);
        }
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
#pragma unroll
          for (int j = 0; j < 4; ++j) pieces[b][j] = piece_of(begin + 4 * b + j, pieces[b][j]);
          transpose_quad(pieces[b]);
          if (T* to = chunk_of(begin + 4 * b + quad)) {
            *reinterpret_cast<uint4*>(to) =
                make_uint4(pieces[b][0], pieces[b][1], pieces[b][2], pieces[b][3]);
          }
        }
      }
    } else {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        auto* at = reinterpret_cast<uint32_t*>(chunk_of(c));
        const uint32_t old = !kGated && a.add && at != nullptr ? at[quad] : 0;
        const uint32_t piece = piece_of(c, old);
        if (at != nullptr) at[quad] = piece;
      }
    }
  }
}

}  // namespace treadle::cuda::stream
