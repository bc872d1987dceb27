// Queries as an int8 pool's keys want them: halves, in the order in which K's bytes come.
#pragma once

#include <type_traits>

#include "attention_decode/making_int8.cuh"
#include "common/int8.cuh"

namespace treadle::cuda::decode {

/// The query heads of a KV head as the B operand, columns of the head in the order in which K's
/// bytes come; heads past the group are zero.
///
/// kBytes: of a row of K that a lane reads at once.
template <class T, int kDim, int kTiles, int kBytes>
struct QueryInt8 {
  uint32_t b[kTiles][kDim / 16][2];
  float sum[kTiles][2];  // of heads 2c and 2c + 1 of a tile
  float unit;            // what q here must be multiplied by

  __device__ void load(const T* rows, int group, int lane) {
    fetch(rows, group, lane);
    finish(lane);
  }

  /// The same of rows of the projection, with norm and RoPE; cos_sin of their token.
  __device__ void make(const T* rows, const Making& making, const float* cos_sin, int group,
                       int lane) {
    fetch(rows, group, lane);
    make_queries_int8<T, kDim>(b, making, cos_sin, lane);
    finish(lane);
  }

 private:
  __device__ __forceinline__ void fetch(const T* rows, int group, int lane) {
    constexpr int kWords = kBytes / 4;
    const int c = lane & 3;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const int head = t * 8 + (lane >> 2);
#pragma unroll
      for (int step = 0; step < kDim / 16; ++step) {
        const int column = ((step / kWords * 4 + c) * kWords + step % kWords) * 4;
        uint2 four = make_uint2(0U, 0U);
        if (head < group) four = *reinterpret_cast<const uint2*>(rows + head * kDim + column);
        b[t][step][0] = four.x;
        b[t][step][1] = four.y;
      }
    }
  }

  __device__ __forceinline__ void finish(int lane) {
    const int c = lane & 3;
    unit = 1.0F;
    if constexpr (std::is_same_v<T, __nv_bfloat16>) to_half();
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      float all = 0.0F;
#pragma unroll
      for (const auto& step : b[t]) {
#pragma unroll
        for (const uint32_t& pair : step) {
          const float2 x = __half22float2(*reinterpret_cast<const __half2*>(&pair));
          all += x.x + x.y;
        }
      }
      all = quad_sum(all);
      sum[t][0] = __shfl_sync(0xffffffffU, all, c * 8);
      sum[t][1] = __shfl_sync(0xffffffffU, all, c * 8 + 4);
    }
  }

  /// The largest value of the tile gets the exponent 14, so that only what is 2^28 times smaller
  /// loses bits.
  __device__ void to_half() {
    float top = 0.0F;
#pragma unroll
    for (auto& tile : b) {
#pragma unroll
      for (const auto& step : tile) {
#pragma unroll
        for (const uint32_t pair : step) {
          top = fmaxf(top, fmaxf(fabsf(__uint_as_float(pair << 16)),
                                 fabsf(__uint_as_float(pair & 0xffff0000U))));
        }
      }
    }
#pragma unroll
    for (int d = 16; d > 0; d /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffU, top, d));
    int field = exponent_of(top);
    field = field == 255 ? 141 : max(field, 15);
    const float scale = power_of_two(268 - field);
    unit = power_of_two(field - 14);
#pragma unroll
    for (auto& tile : b) {
#pragma unroll
      for (auto& step : tile) {
#pragma unroll
        for (uint32_t& pair : step) {
          pair = pack2<__half>(__uint_as_float(pair << 16) * scale,
                               __uint_as_float(pair & 0xffff0000U) * scale);
        }
      }
    }
  }
};

}  // namespace treadle::cuda::decode
