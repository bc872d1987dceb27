// The QKV operation's work on queries that lie as an int8 pool's keys want them: in steps of four
// columns, of which a lane has four in each 64 columns of its head.
#pragma once

#include "attention_decode/params.h"
#include "common/head.cuh"
#include "common/ptx.cuh"

namespace treadle::cuda::decode {

/// Four columns.
template <class T>
__device__ __forceinline__ float4 unpack4(const uint32_t (&pairs)[2]) {
  const float2 low = unpack2<T>(pairs[0]);
  const float2 high = unpack2<T>(pairs[1]);
  return make_float4(low.x, low.y, high.x, high.y);
}

/// In the order of head.cuh. Two steps are eight columns, and of each 64 columns the four lanes
/// of a head have eights 0 and 1, 2 and 3, and so on.
template <int kSteps>
__device__ __forceinline__ void norm_query(float4 (&x)[kSteps], const float4 (&w)[kSteps],
                                           float eps) {
  constexpr int kGroups = kSteps / 4;  // of 64 columns
  float pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float eights[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float sum[kGroups];
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        const float4& four = x[g * 4 + h * 2 + i / 2];
        sum[g] = i % 2 == 0 ? squares(four.x, four.y) : squares(four.z, four.w);
      }
#pragma unroll
      for (int half = kGroups / 2; half > 0; half /= 2) {
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
          if (g < half) sum[g] += sum[g + half];
        }
      }
      sum[0] += __shfl_xor_sync(0xffffffffU, sum[0], 2);
      eights[h] = sum[0] + __shfl_xor_sync(0xffffffffU, sum[0], 1);
    }
    pairs[i] = eights[0] + eights[1];
  }
  const float scale =
      inverse_rms(sum_of_pairs(pairs[0], pairs[1], pairs[2], pairs[3]), kSteps * 16, eps);
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    x[step] = make_float4(normed(x[step].x, scale, w[step].x), normed(x[step].y, scale, w[step].y),
                          normed(x[step].z, scale, w[step].z), normed(x[step].w, scale, w[step].w));
  }
}

/// Norm and RoPE of what a lane has of its heads, one a tile; cos_sin of their token.
template <class T, int kDim, int kTiles>
__device__ __forceinline__ void make_queries_int8(uint32_t (&tiles)[kTiles][kDim / 16][2],
                                                  const Making& making, const float* cos_sin,
                                                  int lane) {
  constexpr int kSteps = kDim / 16;
  // A lane has 16 columns of each 64, so that both numbers of a pair are in it.
  static_assert(kDim % 128 == 0);
  const int first = (lane & 3) * 4;  // of its columns, in units of four
  float4 angles[kSteps / 2][2];
#pragma unroll
  for (int step = 0; step < kSteps / 2; ++step) {
    const auto* from =
        reinterpret_cast<const float4*>(cos_sin) + (step / 4 * 16 + first + step % 4) * 2;
    angles[step][0] = from[0];
    angles[step][1] = from[1];
  }
#pragma unroll
  for (auto& tile : tiles) {
    float4 x[kSteps];
    if (making.q_norm != nullptr) {
      float4 w[kSteps];
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        w[step] = reinterpret_cast<const float4*>(making.q_norm)[step / 4 * 16 + first + step % 4];
      }
#pragma unroll
      for (int step = 0; step < kSteps; ++step) x[step] = unpack4<T>(tile[step]);
      norm_query(x, w, making.norm_eps);
    } else {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) x[step] = unpack4<T>(tile[step]);
    }
#pragma unroll
    for (int step = 0; step < kSteps / 2; ++step) {
      const float4 low = x[step];
      const float4 high = x[step + kSteps / 2];
      const float4 s = angles[step][0];
      const float4 t = angles[step][1];
      auto& to = tile[step];
      to[0] = pack2<T>(turned(low.x, high.x, s.x, -s.y), turned(low.y, high.y, s.z, -s.w));
      to[1] = pack2<T>(turned(low.z, high.z, t.x, -t.y), turned(low.w, high.w, t.z, -t.w));
      auto& far = tile[step + kSteps / 2];
      far[0] = pack2<T>(turned(high.x, low.x, s.x, s.y), turned(high.y, low.y, s.z, s.w));
      far[1] = pack2<T>(turned(high.z, low.z, t.x, t.y), turned(high.w, low.w, t.z, t.w));
    }
  }
}

}  // namespace treadle::cuda::decode
