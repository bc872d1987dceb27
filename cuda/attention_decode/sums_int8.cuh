// What decode attention adds up over an int8 pool's keys: scores, their softmax, and V.
//
// The products run on the integers as halves, which is exact, and the scales come in where there is
// one for each key: q . k = scale_k * (q . k8) + zero_k * sum(q), and the probability that
// multiplies v8 is p * scale_v; sum(p * zero_v) is added at the end. q of bfloat16 is brought into
// the range of halves by a power of two.
#pragma once

#include "attention_decode/finish.cuh"
#include "attention_decode/params.h"
#include "common/int8.cuh"
#include "common/ptx.cuh"

namespace treadle::cuda::decode {

/// Loads kWords words; or where kBytes is 2, half a word.
template <int kBytes, int kWords>
__device__ __forceinline__ void load_shared(uint32_t (&w)[kWords], uint32_t at) {
  if constexpr (kBytes == 16) {
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                 : "r"(at)
                 : "memory");
  } else if constexpr (kBytes == 8) {
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];\n"
                 : "=r"(w[0]), "=r"(w[1])
                 : "r"(at)
                 : "memory");
  } else if constexpr (kBytes == 4) {
    asm volatile("ld.shared.b32 %0, [%1];\n" : "=r"(w[0]) : "r"(at) : "memory");
  } else {
    uint16_t half;
    asm volatile("ld.shared.b16 %0, [%1];\n" : "=h"(half) : "r"(at) : "memory");
    w[0] = half;
  }
}

/// Over the lanes that have other keys of the same heads.
__device__ __forceinline__ float keys_max(float x) {
#pragma unroll
  for (int d = 4; d < 32; d *= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffU, x, d));
  return x;
}
__device__ __forceinline__ float keys_sum(float x) {
#pragma unroll
  for (int d = 4; d < 32; d *= 2) x += __shfl_xor_sync(0xffffffffU, x, d);
  return x;
}

/// The heads of a tile over the keys of a warp. Keys: KeysInt8.
template <class Keys>
struct SumsInt8 {
  using Query = typename Keys::Query;
  using Lane = typename Keys::Lane;
  static constexpr int kTiles = Keys::kTiles;
  static constexpr int kDim = Keys::kDim;
  static constexpr int kBytesK = Keys::kBytesK;
  static constexpr int kBytesV = Keys::kBytesV;
  static constexpr int kRows = 2 * kTiles;  // heads of a lane
  float out[kTiles][kDim / 16][4];
  float max[kRows];    // of scores without Query::unit, until finish()
  float sum[kRows];    // of this lane's keys, until finish()
  float zeros[kRows];  // sum of p * zero_v of this lane's keys, until finish()
  // The largest exponent of scale_v up to here: `out` is in units of this power of two, so that
  // p * scale_v is a half below 2.
  int exponent;

  static __device__ __forceinline__ int row_of(int i, int lane) {
    return i / 2 * 8 + (lane & 3) * 2 + i % 2;
  }
  static __device__ __forceinline__ bool tells(int lane) { return lane < 4; }

  __device__ void clear() {
#pragma unroll
    for (auto& tile : out) {
#pragma unroll
      for (auto& part : tile) part[0] = part[1] = part[2] = part[3] = 0.0F;
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      max[i] = -INFINITY;
      sum[i] = zeros[i] = 0.0F;
    }
    exponent = 0;
  }

  /// Adds the 16 keys of a stage; keys outside [first, end) are masked.
  __device__ void add(const Query& q, uint32_t stage, const Lane& at, float scale_log2, int first,
                      int end) {
    const int n = at.lane >> 2;
    // Element i of s: key n + 8 * (i / 2), head 2c + i % 2.
    float s[kTiles][4] = {};
    {
      constexpr int kWords = kBytesK / 4;
#pragma unroll
      for (int load = 0; load < kDim / 16 / kWords; ++load) {
        uint32_t w[2][kWords];
        load_shared<kBytesK>(w[0], stage + at.from_k[load]);
        load_shared<kBytesK>(w[1], stage + at.from_k[load] + 8 * kDim);
#pragma unroll
        for (int i = 0; i < kWords; ++i) {
          uint32_t a[4];
          biased4(w[0][i], a[0], a[2]);
          biased4(w[1][i], a[1], a[3]);
#pragma unroll
          for (int t = 0; t < kTiles; ++t) {
            const auto& b = q.b[t][load * kWords + i];
            mma_16816<__half>(s[t], a, b[0], b[1]);
          }
        }
      }
    }
    // Scale and zero of keys n and n + 8.
    uint32_t raw[4][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) load_shared<8>(raw[i], stage + at.scale + i * 64);
    float scale_v[2] = {__uint_as_float(raw[2][0]), __uint_as_float(raw[3][0])};
    float zero_v[2] = {__uint_as_float(raw[2][1]), __uint_as_float(raw[3][1])};
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const float scale = __uint_as_float(raw[k][0]);
      const float zero = fmaf(-kInt8Bias, scale, __uint_as_float(raw[k][1]));
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        s[t][2 * k] = fmaf(s[t][2 * k], scale, zero * q.sum[t][0]);
        s[t][2 * k + 1] = fmaf(s[t][2 * k + 1], scale, zero * q.sum[t][1]);
      }
    }
    if (first > 0 || end < kWarpKeys) {
      // What no query may see can be anything, and 0 * NaN is NaN.
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        if (n + 8 * k >= first && n + 8 * k < end) continue;
        scale_v[k] = zero_v[k] = 0.0F;
#pragma unroll
        for (auto& tile : s) tile[2 * k] = tile[2 * k + 1] = -INFINITY;
      }
    }

    const int now = ::max(exponent, exponent_of(keys_max(fmaxf(scale_v[0], scale_v[1]))));
    const float change = power_of_two(::max(127 + exponent - now, 0));
    const float unit[2] = {scale_v[0] * power_of_two(254 - now),
                           scale_v[1] * power_of_two(254 - now)};
    exponent = now;
    uint32_t p[kTiles][2];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      float factor[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int i = 2 * t + j;
        float& low = s[t][j];
        float& high = s[t][2 + j];
        const float top = fmaxf(max[i], keys_max(fmaxf(low, high)));
        const float base = top == -INFINITY ? 0.0F : top * scale_log2;
        factor[j] = exp2_approx(max[i] * scale_log2 - base);
        max[i] = top;
        low = exp2_approx(low * scale_log2 - base);
        high = exp2_approx(high * scale_log2 - base);
        sum[i] = sum[i] * factor[j] + (low + high);
        zeros[i] = fmaf(low, zero_v[0], fmaf(high, zero_v[1], zeros[i] * factor[j]));
        factor[j] *= change;
      }
      if (__any_sync(0xffffffffU, factor[0] != 1.0F || factor[1] != 1.0F)) {
#pragma unroll
        for (auto& part : out[t]) {
          part[0] *= factor[0];
          part[1] *= factor[1];
          part[2] *= factor[0];
          part[3] *= factor[1];
        }
      }
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        p[t][k] = transpose_8x8(pack2<__half>(s[t][2 * k] * unit[k], s[t][2 * k + 1] * unit[k]));
      }
    }

    constexpr int kWords = (kBytesV + 3) / 4;
    constexpr int kPairs = kBytesV < 4 ? 1 : 2;  // of columns in a word
#pragma unroll
    for (int load = 0; load < kDim / 8 / kBytesV; ++load) {
      uint32_t w[4][kWords];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        load_shared<kBytesV>(w[i], stage + at.from_v[load][i & 1] + (i >> 1) * 8 * kDim);
      }
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        uint32_t low[4];
        uint32_t high[4];
        pair4(w[0][i], w[1][i], low);
        pair4(w[2][i], w[3][i], high);
#pragma unroll
        for (int k = 0; k < kPairs; ++k) {
          const uint32_t a[4] = {low[2 * k], low[2 * k + 1], high[2 * k], high[2 * k + 1]};
#pragma unroll
          for (int t = 0; t < kTiles; ++t) {
            mma_16816<__half>(out[t][(load * kWords + i) * kPairs + k], a, p[t][0], p[t][1]);
          }
        }
      }
    }
  }

  /// After the last key.
  __device__ void finish(const Query& q) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      sum[i] = keys_sum(sum[i]);
      zeros[i] = keys_sum(zeros[i]);
      max[i] *= q.unit;
    }
  }

  /// This lane's share of row row_of(i), times factor, to its place in rows of floats: the
  /// columns whose bytes of V it had.
  __device__ void write(int i, float factor, float* rows, int lane) const {
    const int r = row_of(i, lane);
    const float unit = exponent == 0 ? 0.0F : power_of_two(exponent) * factor;
    const float zero = zeros[i] * factor;
    const auto& tile = out[i / 2];
#pragma unroll
    for (int t = 0; t < kDim / 8; t += 2) {
      const int column = (t / kBytesV * 8 + (lane >> 2)) * kBytesV + t % kBytesV;
      float* to = rows + r * kDim + merge_column<kDim>(r, column);
      *reinterpret_cast<float2*>(to) = make_float2(fmaf(tile[t / 2][i % 2], unit, zero),
                                                   fmaf(tile[t / 2][2 + i % 2], unit, zero));
    }
  }
};

}  // namespace treadle::cuda::decode
