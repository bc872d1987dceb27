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

/// Stores some of the sums that a warp has of a tile, which is 16 rows of W from `row` on, or when
/// gated 8 columns of y from row / 2 on: kCount groups of 8 tokens, every `stride`-th from the
/// `first` group of y on.
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
  // Sums are pairs of tokens of one column; memory wants pairs of columns of one token.
  const auto place = [&](int i, int half) {
    const int token = 8 * (first + i * stride) + group;
    const int column = kGated ? row / 2 + 2 * quad : row + 8 * half + 2 * quad;
    return token < a.m && column < a.columns
               ? reinterpret_cast<uint32_t*>(static_cast<T*>(a.y) + size_t(token) * a.columns +
                                             column)
               : nullptr;
  };
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
  } else if constexpr (kGated) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      float h[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        // As the two kernels of a larger batch do it: gate and up are rounded on the way.
        h[j] = silu(to_float(from_float<T>(sums[i][j] + bias[0]))) *
               to_float(from_float<T>(sums[i][2 + j] + bias[1]));
      }
      const uint32_t pair = transpose(pack2<T>(h[0], h[1]));
      if (uint32_t* to = place(i, 0)) *to = pair;
    }
  } else {
    constexpr int kBatch = kCount < 4 ? kCount : 4;  // groups whose loads wait for memory together
    static_assert(kCount % kBatch == 0);
#pragma unroll
    for (int begin = 0; begin < kCount; begin += kBatch) {
      uint32_t old[kBatch][2];
      if (a.add) {
#pragma unroll
        for (int i = 0; i < 2 * kBatch; ++i) {
          const uint32_t* from = place(begin + i / 2, i % 2);
          old[i / 2][i % 2] = from != nullptr ? *from : 0;
        }
      }
#pragma unroll
      for (int i = 0; i < 2 * kBatch; ++i) {
        const float* sum = sums[begin + i / 2] + i % 2 * 2;
        float low = sum[0] + bias[i % 2];
        float high = sum[1] + bias[i % 2];
        if (a.add) {
          const uint32_t pair = transpose(old[i / 2][i % 2]);
          low += low_of<T>(pair);
          high += high_of<T>(pair);
        }
        const uint32_t pair = transpose(pack2<T>(low, high));
        if (uint32_t* to = place(begin + i / 2, i % 2)) *to = pair;
      }
    }
  }
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

/// Where in y chunk `c` of a warp's sums is, 16 bytes of the token lane / 4 of a group of 8: a
/// group has two chunks, or one when gated. Null outside y.
template <class T, bool kGated>
__device__ __forceinline__ T* chunk_of(const Output& a, int c, int row, int first, int stride) {
  const int token =
      8 * (first + (kGated ? c : c / 2) * stride) + static_cast<int>(threadIdx.x % 32 / 4);
  const int column = kGated ? row / 2 : row + c % 2 * 8;
  return token < a.m && column < a.columns
             ? static_cast<T*>(a.y) + size_t(token) * a.columns + column
             : nullptr;
}

/// What the sums of kCount groups of 8 tokens are added to, in the order of store_chunks().
template <int kCount>
struct Chunks {
  static_assert(kCount % 2 == 0);
  uint4 of[kCount / 2];
};

/// Loads it ahead of store_chunks(), so that the latency of memory passes while sums are awaited.
template <class T, int kCount>
__device__ __forceinline__ void load_chunks(const Output& a, int row, int first, int stride,
                                            Chunks<kCount>& old) {
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) {
    const int c = 4 * i + static_cast<int>(threadIdx.x % 4);
    const T* from = a.add ? chunk_of<T, false>(a, c, row, first, stride) : nullptr;
    old.of[i] = from != nullptr ? *reinterpret_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
  }
}

/// What store() does, by 16 bytes. Rows of y are aligned to 16 bytes. `loaded`: by load_chunks(),
/// or null.
///
/// Sums are pairs of tokens of one column; memory wants columns of one token. So they are
/// transposed to pieces of two columns, four of which, in the lanes of a quad, are a chunk of 16
/// bytes. Four chunks are transposed once more, so that each lane has one.
template <class T, class Out, bool kGated, int kCount>
__device__ __forceinline__ void store_chunks(const Output& a, const float (&sums)[kCount][4],
                                             int row, int first, int stride,
                                             const Chunks<kCount>* loaded = nullptr) {
  if constexpr (std::is_same_v<Out, float>) {
    store<T, Out, kGated>(a, sums, row, first, stride);
  } else {
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
    constexpr int kChunks = kGated ? kCount : 2 * kCount;
    const auto chunk = [&](int c) { return chunk_of<T, kGated>(a, c, row, first, stride); };
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
      // Fours whose loads wait for memory together.
      constexpr int kBatch = kChunks % 16 == 0 ? 4 : kChunks % 8 == 0 ? 2 : 1;
#pragma unroll
      for (int begin = 0; begin < kChunks; begin += 4 * kBatch) {
        uint32_t pieces[kBatch][4] = {};
        if (!kGated && a.add) {
#pragma unroll
          for (int b = 0; b < kBatch; ++b) {
            const T* from = chunk(begin + 4 * b + quad);
            const uint4 v = loaded != nullptr ? loaded->of[begin / 4 + b]
                            : from != nullptr ? *reinterpret_cast<const uint4*>(from)
                                              : make_uint4(0, 0, 0, 0);
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
          if (T* to = chunk(begin + 4 * b + quad)) {
            *reinterpret_cast<uint4*>(to) =
                make_uint4(pieces[b][0], pieces[b][1], pieces[b][2], pieces[b][3]);
          }
        }
      }
    } else {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        auto* at = reinterpret_cast<uint32_t*>(chunk(c));
        const uint32_t old = !kGated && a.add && at != nullptr ? at[quad] : 0;
        const uint32_t piece = piece_of(c, old);
        if (at != nullptr) at[quad] = piece;
      }
    }
  }
}

}  // namespace treadle::cuda::stream
