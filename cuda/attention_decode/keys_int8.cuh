// A warp's 16 keys of a block where the pool is int8, with a KvScale for each key's K and V.
//
// The products run on the integers as halves, which is exact, and the scales come in where there is
// one for each key: q . k = scale_k * (q . k8) + zero_k * sum(q), and the probability that multiplies
// v8 is p * scale_v; sum(p * zero_v) is added at the end. q of bfloat16 is brought into the range of
// halves by a power of two.
//
// Rows lie in shared memory as they do in the pool, but for a swizzle. In what order the columns of
// a head go into the products is free, so a lane takes contiguous bytes of a row: of K for four
// lanes to a key, of V for eight.
#pragma once

#include <type_traits>

#include "attention_decode/plan.cuh"
#include "attention_decode/softmax.cuh"
#include "common/int8.cuh"

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
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];\n" : "=r"(w[0]), "=r"(w[1]) : "r"(at) : "memory");
  } else if constexpr (kBytes == 4) {
    asm volatile("ld.shared.b32 %0, [%1];\n" : "=r"(w[0]) : "r"(at) : "memory");
  } else {
    uint16_t half;
    asm volatile("ld.shared.b16 %0, [%1];\n" : "=h"(half) : "r"(at) : "memory");
    w[0] = half;
  }
}

template <class Type, int kHeadDim>
struct KeysInt8 {
  using T = Type;
  static constexpr int kDim = kHeadDim;
  static constexpr int kElementBytes = 1;
  static constexpr int kHalf = kWarpKeys * kDim;
  static constexpr int kScales = 2 * kHalf;  // of K, then of V
  static constexpr int kScaleBytes = kWarpKeys * 8;
  static constexpr int kStageBytes = kScales + 2 * kScaleBytes;
  // A lane's contiguous bytes of a row.
  static constexpr int kBytesK = kDim % 64 == 0 ? 16 : kDim % 32 == 0 ? 8 : 4;
  static constexpr int kBytesV = kDim % 128 == 0 ? 16 : kDim == 64 ? 8 : kDim % 32 == 0 ? 4 : 2;

  /// Where a byte of K or V lies. The lanes of one access have rows that differ in bit 0 (K), or in
  /// bits 1 and 2 (V).
  static __device__ __forceinline__ int at_k(int row, int byte) {
    const int at = row * kDim + byte;
    return kDim % 128 == 0 ? at ^ ((row & 1) << 6) : at;
  }
  static __device__ __forceinline__ int at_v(int row, int byte) {
    const int at = row * kDim + byte;
    return kDim % 64 == 0 ? at ^ ((row >> 1 & 3) << 5) : at;
  }

  /// In units of 512 bytes, the size of a page's 64 KvScales: K's page, and its scales. V's are
  /// kv_heads pages further.
  struct Place {
    int page, scales;
    __device__ Place of_lane(int lane) const {
      return {__shfl_sync(0xffffffffU, page, lane), __shfl_sync(0xffffffffU, scales, lane)};
    }
  };
  static __device__ __forceinline__ Place place_of(const Params& p, int block, int kv_head) {
    const int pages = p.num_layers * 2 * p.kv_heads;
    const int page = p.layer * 2 * p.kv_heads + kv_head;
    const int base = block * pages * (kDim / 8 + 1);
    return {base + page * (kDim / 8), base + pages * (kDim / 8) + page};
  }

  static __device__ __forceinline__ void copy(const Params& p, Place place, int keys, uint32_t dst,
                                              int warp, int lane, uint64_t policy) {
    constexpr int kChunks = kDim / 16;  // of 16 bytes in a row
    const auto* pool = static_cast<const uint8_t*>(p.kv);
    const uint8_t* k = pool + int64_t{place.page} * 512 + warp * kHalf + lane * 16;
    const uint8_t* v = k + int64_t{p.kv_heads} * (64 * kDim);
#pragma unroll
    for (int i = 0; i < (kDim + 31) / 32; ++i) {
      const int r = (i * 32 + lane) / kChunks;
      const int byte = (i * 32 + lane) % kChunks * 16;
      if (kDim % 32 != 0 && r >= kWarpKeys) break;
      cp_async_16(dst + at_k(r, byte), k + i * 512, r < keys, policy);
    }
#pragma unroll
    for (int i = 0; i < (kDim + 31) / 32; ++i) {
      const int r = (i * 32 + lane) / kChunks;
      const int byte = (i * 32 + lane) % kChunks * 16;
      if (kDim % 32 != 0 && r >= kWarpKeys) break;
      cp_async_16(dst + kHalf + at_v(r, byte), v + i * 512, r < keys, policy);
    }
    if (lane < 16) {  // two keys a lane
      const uint8_t* scales = pool +
                              (int64_t{place.scales} + (lane < 8 ? 0 : p.kv_heads)) * 512 +
                              warp * kScaleBytes + (lane & 7) * 16;
      cp_async_16(dst + kScales + lane * 16, scales, (lane & 7) * 2 < keys, policy);
    }
  }

  /// q rows of one tile as the A operand, columns in the order in which K's bytes come; rows past
  /// the group are zero.
  struct Query {
    uint32_t a[kDim / 16][4];
    float sum[2];  // of rows lane / 4 and lane / 4 + 8
    float unit;    // what q here must be multiplied by

    __device__ void load(const T* rows, int group, int lane) {
      constexpr int kWords = kBytesK / 4;
      const int r = lane >> 2;
#pragma unroll
      for (int step = 0; step < kDim / 16; ++step) {
        const int column = ((step / kWords * 4 + (lane & 3)) * kWords + step % kWords) * 4;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int row = r + 8 * h;
          uint2 four = make_uint2(0U, 0U);
          if (row < group) four = *reinterpret_cast<const uint2*>(rows + row * kDim + column);
          a[step][h] = four.x;
          a[step][2 + h] = four.y;
        }
      }
      unit = 1.0F;
      if constexpr (std::is_same_v<T, __nv_bfloat16>) to_half();
      sum[0] = sum[1] = 0.0F;
#pragma unroll
      for (const auto& step : a) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 x = __half22float2(*reinterpret_cast<const __half2*>(&step[i]));
          sum[i & 1] += x.x + x.y;
        }
      }
      sum[0] = quad_sum(sum[0]);
      sum[1] = quad_sum(sum[1]);
    }

    /// The largest value of the tile gets the exponent 14, so that only what is 2^28 times smaller
    /// loses bits.
    __device__ void to_half() {
      float top = 0.0F;
#pragma unroll
      for (const auto& step : a) {
#pragma unroll
        for (const uint32_t pair : step) {
          top = fmaxf(top, fmaxf(fabsf(__uint_as_float(pair << 16)),
                                 fabsf(__uint_as_float(pair & 0xffff0000U))));
        }
      }
#pragma unroll
      for (int d = 16; d > 0; d /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffU, top, d));
      int field = exponent_of(top);
      field = field == 255 ? 141 : max(field, 15);
      const float scale = power_of_two(268 - field);
      unit = power_of_two(field - 14);
#pragma unroll
      for (auto& step : a) {
#pragma unroll
        for (uint32_t& pair : step) {
          pair = pack2<__half>(__uint_as_float(pair << 16) * scale,
                               __uint_as_float(pair & 0xffff0000U) * scale);
        }
      }
    }
  };

  struct Sums {
    float out[kDim / 8][4];
    RunningSoftmax softmax;  // of scores without Query::unit, until finish()
    float zeros[2];          // sum of p * zero_v of this lane's columns
    // The largest exponent of scale_v up to here: `out` is in units of this power of two, so that
    // p * scale_v is a half below 2.
    int exponent;

    __device__ void clear() {
#pragma unroll
      for (auto& tile : out) tile[0] = tile[1] = tile[2] = tile[3] = 0.0F;
      softmax.clear();
      zeros[0] = zeros[1] = 0.0F;
      exponent = 0;
    }

    __device__ void add(const Query& q, uint32_t k, int lane, float scale_log2, int first,
                        int end) {
      const int c = lane & 3;
      const int n = lane >> 2;
      float s[2][4] = {};
      {
        constexpr int kWords = kBytesK / 4;
#pragma unroll
        for (int load = 0; load < kDim / 16 / kWords; ++load) {
          uint32_t w[2][kWords];
          const int byte = (load * 4 + c) * kBytesK;
          load_shared<kBytesK>(w[0], k + at_k(n, byte));
          load_shared<kBytesK>(w[1], k + at_k(n + 8, byte));
#pragma unroll
          for (int i = 0; i < kWords; ++i) {
#pragma unroll
            for (int t = 0; t < 2; ++t) {
              uint32_t b[2];
              biased4(w[t][i], b[0], b[1]);
              mma_16816<__half>(s[t], q.a[load * kWords + i], b[0], b[1]);
            }
          }
        }
      }
      // [tile][key 2c: scale, zero; key 2c + 1: scale, zero]
      uint32_t scales_k[2][4];
      uint32_t scales_v[2][4];
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        load_shared<16>(scales_k[t], k + kScales + t * 64 + c * 16);
        load_shared<16>(scales_v[t], k + kScales + kScaleBytes + t * 64 + c * 16);
      }
#pragma unroll
      for (int t = 0; t < 2; ++t) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float scale = __uint_as_float(scales_k[t][2 * j]);
          const float zero = fmaf(-kInt8Bias, scale, __uint_as_float(scales_k[t][2 * j + 1]));
          s[t][j] = fmaf(s[t][j], scale, zero * q.sum[0]);
          s[t][2 + j] = fmaf(s[t][2 + j], scale, zero * q.sum[1]);
        }
      }
      if (first > 0 || end < kWarpKeys) {
        RunningSoftmax::mask(s, lane, first, end);
        // What no query may see can be anything, and 0 * NaN is NaN.
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int key = (i >> 1) * 8 + c * 2 + (i & 1);
          if (key < first || key >= end) {
            scales_v[i >> 1][(i & 1) * 2] = scales_v[i >> 1][(i & 1) * 2 + 1] = 0U;
          }
        }
      }
      float factor[2];
      softmax.add(s, scale_log2, factor);

      float top = 0.0F;
#pragma unroll
      for (int i = 0; i < 4; ++i) top = fmaxf(top, __uint_as_float(scales_v[i >> 1][(i & 1) * 2]));
      const int now = ::max(exponent, exponent_of(quad_max(top)));
      const float unit = power_of_two(254 - now);
      const float change = power_of_two(::max(127 + exponent - now, 0));
      exponent = now;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float sum = zeros[h] * factor[h];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& p = s[i >> 1][2 * h + (i & 1)];
          sum = fmaf(p, __uint_as_float(scales_v[i >> 1][(i & 1) * 2 + 1]), sum);
          p *= __uint_as_float(scales_v[i >> 1][(i & 1) * 2]) * unit;
        }
        zeros[h] = sum;
        factor[h] *= change;
      }
      rescale(out, factor);

      using H = __half;
      const uint32_t p[4] = {pack2<H>(s[0][0], s[0][1]), pack2<H>(s[0][2], s[0][3]),
                             pack2<H>(s[1][0], s[1][1]), pack2<H>(s[1][2], s[1][3])};
      constexpr int kWords = (kBytesV + 3) / 4;
      constexpr int kTiles = kBytesV < 4 ? 2 : 4;  // of a word's bytes
#pragma unroll
      for (int load = 0; load < kDim / 8 / kBytesV; ++load) {
        uint32_t w[4][kWords];
        const int byte = (load * 8 + n) * kBytesV;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int key = (i >> 1) * 8 + c * 2 + (i & 1);
          load_shared<kBytesV>(w[i], k + kHalf + at_v(key, byte));
        }
#pragma unroll
        for (int i = 0; i < kWords; ++i) {
          uint32_t low[4];
          uint32_t high[4];
          pair4(w[0][i], w[1][i], low);
          pair4(w[2][i], w[3][i], high);
#pragma unroll
          for (int t = 0; t < kTiles; ++t) {
            mma_16816<H>(out[(load * kWords + i) * kTiles + t], p, low[t], high[t]);
          }
        }
      }
    }

    __device__ void finish(const Query& q) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        softmax.sum[h] = quad_sum(softmax.sum[h]);
        zeros[h] = quad_sum(zeros[h]);
        softmax.max[h] *= q.unit;
      }
    }

    /// Column 2c + j of product t is byte t % kBytesV of the bytes that lane group 2c + j has.
    __device__ void write(int h, float factor, float* row, int lane) const {
      const float unit = exponent == 0 ? 0.0F : power_of_two(exponent) * factor;
      const float zero = zeros[h] * factor;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int t = 0; t < kDim / 8; t += 2) {
          float* to = row + (t / kBytesV * 8 + (lane & 3) * 2 + j) * kBytesV + t % kBytesV;
          *reinterpret_cast<float2*>(to) = make_float2(fmaf(out[t][2 * h + j], unit, zero),
                                                       fmaf(out[t + 1][2 * h + j], unit, zero));
        }
      }
    }
  };
};

}  // namespace treadle::cuda::decode
