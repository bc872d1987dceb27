// The QKV operation's work on queries that lie as the A operand of a product, for pools of 16 bits.
#pragma once

#include "attention_decode/params.h"
#include "common/head.cuh"
#include "common/ptx.cuh"

namespace treadle::cuda::decode {

/// In the order of head.cuh: the four lanes of a row have the four pairs of each eight columns.
template <int kDim>
__device__ __forceinline__ void norm_query(float2 (&x)[kDim / 8], const float2 (&w)[kDim / 8],
                                           float eps) {
  constexpr int kEights = kDim / 8;
  float sum[kEights];
#pragma unroll
  for (int e = 0; e < kEights; ++e) sum[e] = squares(x[e].x, x[e].y);
#pragma unroll
  for (int half = head_lanes(kDim) / 2; half > 0; half /= 2) {
#pragma unroll
    for (int e = 0; e < kEights; ++e) {
      if (e < half && e + half < kEights) sum[e] += sum[e + half];
    }
  }
  const float scale = inverse_rms(quad_sum(sum[0]), kDim, eps);
#pragma unroll
  for (int e = 0; e < kEights; ++e) {
    x[e] = make_float2(normed(x[e].x, scale, w[e].x), normed(x[e].y, scale, w[e].y));
  }
}

/// Norm and RoPE of what a lane has of rows lane / 4 and lane / 4 + 8; cos_sin of their token.
template <class T, int kDim>
__device__ __forceinline__ void make_queries_16bit(uint32_t (&a)[kDim / 16][4],
                                                   const Making& making, const float* cos_sin,
                                                   int group, int lane) {
  constexpr int kEights = kDim / 8;
  // All loads before the first use of one. A lane has pairs of neighbouring columns, one pair
  // of each eight; the other numbers that RoPE needs are half a head further.
  float4 angles[kEights / 2];
#pragma unroll
  for (int e = 0; e < kEights / 2; ++e) {
    angles[e] = reinterpret_cast<const float4*>(cos_sin)[e * 4 + (lane & 3)];
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (h * 8 >= group) break;
    float2 x[kEights];
    auto packed = [&](int e) -> uint32_t& { return a[e / 2][e % 2 * 2 + h]; };
    if (making.q_norm != nullptr) {
      float2 w[kEights];
#pragma unroll
      for (int e = 0; e < kEights; ++e) {
        w[e] = reinterpret_cast<const float2*>(making.q_norm)[e * 4 + (lane & 3)];
      }
#pragma unroll
      for (int e = 0; e < kEights; ++e) x[e] = unpack2<T>(packed(e));
      norm_query<kDim>(x, w, making.norm_eps);
    } else {
#pragma unroll
      for (int e = 0; e < kEights; ++e) x[e] = unpack2<T>(packed(e));
    }
#pragma unroll
    for (int e = 0; e < kEights / 2; ++e) {
      const float2 low = x[e];
      const float2 high = x[e + kEights / 2];
      const float4 t = angles[e];
      packed(e) = pack2<T>(turned(low.x, high.x, t.x, -t.y), turned(low.y, high.y, t.z, -t.w));
      packed(e + kEights / 2) =
          pack2<T>(turned(high.x, low.x, t.x, t.y), turned(high.y, low.y, t.z, t.w));
    }
  }
}

}  // namespace treadle::cuda::decode
