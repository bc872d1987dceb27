// The products of the kernel of int4_mma.h, from shared memory to sums in registers.
#pragma once

#include <type_traits>

#include "common/ptx.cuh"
#include "linear/int4_fragments.cuh"
#include "linear/int4_mma_shape.cuh"

namespace treadle::cuda::int4::mma {

/// d = a b, see mma_16816().
template <class T>
__device__ __forceinline__ void mma_first(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                          uint32_t b1) {
  d[0] = d[1] = d[2] = d[3] = 0.0F;
  mma_16816<T>(d, a, b0, b1);
}

/// What makes A fragments of a tile's numbers in one group, for tiles of many tokens: numbers times
/// scales, rounded to T.
template <class T>
struct Rounded : GroupScales<T> {
  static constexpr bool kExact = false;
  using GroupScales<T>::GroupScales;
  __device__ __forceinline__ void make(uint32_t q, uint32_t (&a)[4]) const {
    this->dequantise(q, a);
  }
};

/// The same for tiles of few tokens: numbers less zeros alone, as fewer instructions make them.
/// Sums of a step are multiplied by the scales in float.
template <class T>
struct Exact;
template <>
struct Exact<__half> {
  static constexpr bool kExact = true;
  // A nibble in the lowest bits of a half is q * 2^-24, a subnormal number, and in the next ones 16
  // times that; differences and products of them are exact.
  uint32_t low, high;  // the zeros of rows r and r + 8, likewise
  float scale[2];      // with what brings the sums to size

  Exact() = default;
  __device__ __forceinline__ explicit Exact(uint2 words) {
    low = __byte_perm(words.x, 0U, 0x4040);
    high = __byte_perm(words.y, 0U, 0x4040) << 4;
    scale[0] = __uint_as_float(words.x & 0xffffff00U) * 0x1p24F;
    scale[1] = __uint_as_float(words.y & 0xffffff00U) * 0x1p20F;
  }
  __device__ __forceinline__ void make(uint32_t q, uint32_t (&a)[4]) const {
    a[0] = subtract(q & 0x000f000fU, low);
    a[1] = subtract(q & 0x00f000f0U, high);
    q >>= 8;
    a[2] = subtract(q & 0x000f000fU, low);
    a[3] = subtract(q & 0x00f000f0U, high);
  }

 private:
  static __device__ __forceinline__ uint32_t subtract(uint32_t a, uint32_t b) {
    uint32_t r;
    asm("sub.f16x2 %0, %1, %2;\n" : "=r"(r) : "r"(a), "r"(b));
    return r;
  }
};
template <>
struct Exact<__nv_bfloat16> {
  static constexpr bool kExact = true;
  Zeros<__nv_bfloat16> zeros;
  float scale[2];

  Exact() = default;
  __device__ __forceinline__ explicit Exact(uint2 words) : zeros(words) {
    scale[0] = __uint_as_float(words.x & 0xffffff00U);
    scale[1] = __uint_as_float(words.y & 0xffffff00U);
  }
  __device__ __forceinline__ void make(uint32_t q, uint32_t (&a)[4]) const { zeros.unpack(q, a); }
};

/// Adds products to a warp's sums.
template <class T, class S>
class Multiplier {
 public:
  float acc[S::kTiles][S::kVectors][4];

  __device__ __forceinline__ explicit Multiplier(const Args& a)
      : group_mask_(a.layout.groups > 1 ? a.layout.group_size - 1 : 0x7fffffff) {
    const int warp = threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    // Matrices of x: lane i names row i % 8 of matrix i / 8, which are the low and the high eight
    // columns of the first eight tokens, then of the next.
    x_at_ = (lane / 16 * 8 + lane % 8) * 128 + (((lane / 8 % 2) ^ (lane % 8)) << 4);
    q_at_ = S::kQ + warp * (S::kTiles * kTileBytes) + lane * kLaneBytes;
    words_at_ = S::kWords + warp * S::kWarpWords + lane / 4 * 8;
    keep(x_at_);
    keep(q_at_);
    keep(words_at_);
    clear(acc);
  }
  __device__ __forceinline__ void clear() { clear(acc); }
  /// A step's, from `column` on; `first`: of these sums. Calls fetch() among the products, which
  /// hide what it costs.
  template <class Fetch>
  __device__ __forceinline__ void add(uint32_t stage, bool first, int column, const Fetch& fetch) {
    if (first || (column & group_mask_) == 0) enter_group(stage, 0);
    uint4 q[S::kTiles];
#pragma unroll
    for (int t = 0; t < S::kTiles; ++t) q[t] = load_shared_16(stage + q_at_ + t * kTileBytes);
    const bool two_groups = ((column + kGroupMultiple) & group_mask_) == 0;
    if constexpr (Weights::kExact) {
      Sums sums;
      add_half<0, true>(stage, q, sums);
      if (two_groups) {
        scale(sums);
        clear(sums);
        enter_group(stage, 1);
      }
      fetch();
      add_half<1, false>(stage, q, sums);
      scale(sums);
    } else {
      add_half<0, false>(stage, q, acc);
      if (two_groups) enter_group(stage, 1);
      fetch();
      add_half<1, false>(stage, q, acc);
    }
  }

 private:
  using Weights = std::conditional_t<S::kExact, Exact<T>, Rounded<T>>;
  using Sums = float[S::kTiles][S::kVectors][4];

  static __device__ __forceinline__ void clear(Sums& sums) {
#pragma unroll
    for (int t = 0; t < S::kTiles; ++t) {
#pragma unroll
      for (int i = 0; i < S::kVectors; ++i) {
        sums[t][i][0] = sums[t][i][1] = sums[t][i][2] = sums[t][i][3] = 0.0F;
      }
    }
  }
  __device__ __forceinline__ void enter_group(uint32_t stage, int group) {
#pragma unroll
    for (int t = 0; t < S::kTiles; ++t) {
      weights_[t] =
          Weights(load_shared_8(stage + words_at_ + (group * S::kTiles + t) * kGroupBytes));
    }
  }
  __device__ __forceinline__ void scale(const Sums& sums) {
#pragma unroll
    for (int t = 0; t < S::kTiles; ++t) {
#pragma unroll
      for (int i = 0; i < S::kVectors; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) acc[t][i][e] += weights_[t].scale[e / 2] * sums[t][i][e];
      }
    }
  }
  /// 32 columns of a step; kFirst: the first ones of `sums`. Fragments of x are read one pair
  /// ahead, and W's of the second 16 columns are made between the products of the first.
  template <int kHalf, bool kFirst>
  __device__ __forceinline__ void add_half(uint32_t stage, const uint4 (&q)[S::kTiles],
                                           Sums& sums) const {
    constexpr int kPairs = S::kVectors / 2;
    uint32_t a[2][S::kTiles][4];
    uint32_t b[2][4];
    const auto read = [&](int i) {
      ldmatrix_x4(b[i % 2],
                  ((stage + x_at_) ^ ((2 * kHalf + i / kPairs) * 32)) + i % kPairs * 2048);
    };
    read(0);
#pragma unroll
    for (int t = 0; t < S::kTiles; ++t) weights_[t].make(kHalf == 0 ? q[t].x : q[t].z, a[0][t]);
#pragma unroll
    for (int i = 0; i < 2 * kPairs; ++i) {
      const int j = i / kPairs;
      const int p = i % kPairs;
      if (i + 1 < 2 * kPairs) read(i + 1);
#pragma unroll
      for (int t = 0; t < S::kTiles; ++t) {
        if (j == 0 && t * kPairs / S::kTiles == p) {
          weights_[t].make(kHalf == 0 ? q[t].y : q[t].w, a[1][t]);
        }
#pragma unroll
        for (int v = 0; v < 2; ++v) {
          const uint32_t b0 = b[i % 2][2 * v];
          const uint32_t b1 = b[i % 2][2 * v + 1];
          if (kFirst && j == 0) {
            mma_first<T>(sums[t][2 * p + v], a[j][t], b0, b1);
          } else {
            mma_16816<T>(sums[t][2 * p + v], a[j][t], b0, b1);
          }
        }
      }
    }
  }

  uint32_t x_at_, q_at_, words_at_;  // bytes from a block's begin
  int group_mask_;
  Weights weights_[S::kTiles];
};

}  // namespace treadle::cuda::int4::mma
