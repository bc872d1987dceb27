// What happens to a head between the projection and attention: RMS norm and RoPE. Every rounding is
// spelled out, so that kernels that hold a head in different ways agree to the bit.
#pragma once

#include "common/vec.cuh"

namespace treadle::cuda {

// --- numbers ---

/// Of one of the pair (i, i + rotary_dim / 2), whose other number is y. The first of a pair takes
/// the negative sine.
__device__ __forceinline__ float turned(float x, float y, float cosine, float sine) {
  return __fmaf_rn(x, cosine, __fmul_rn(y, sine));
}

/// The order of a head's sum of squares: pairs of neighbours (this function), then for each of the
/// four pairs of eight columns the sum over the eights (of which there are a power of two, those
/// past the head being zeros; halves are added to halves), then sum_of_pairs().
__device__ __forceinline__ float squares(float x, float y) {
  return __fmaf_rn(y, y, __fmul_rn(x, x));
}
__device__ __forceinline__ float sum_of_pairs(float a, float b, float c, float d) {
  return (a + b) + (c + d);
}
__device__ __forceinline__ float inverse_rms(float sum, int dim, float eps) {
  return __fdiv_rn(1.0F, __fsqrt_rn(__fdiv_rn(sum, static_cast<float>(dim)) + eps));
}
__device__ __forceinline__ float normed(float x, float scale, float weight) {
  return __fmul_rn(__fmul_rn(x, scale), weight);
}

// --- a head in the registers of kLanes lanes, eight columns each; lanes past the head idle ---

/// Lanes that a head of kDim columns takes.
constexpr int head_lanes(int dim) { return dim <= 64 ? 8 : dim <= 128 ? 16 : 32; }

/// By all lanes; x is zero in those past the head, which bring no weight.
template <int kLanes>
__device__ __forceinline__ void norm_head(float (&x)[8], const float* weight, bool here, int lane,
                                          int dim, float eps) {
  float sum[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) sum[i] = squares(x[2 * i], x[2 * i + 1]);
#pragma unroll
  for (int other = kLanes / 2; other > 0; other /= 2) {
#pragma unroll
    for (float& s : sum) s += __shfl_xor_sync(0xffffffffU, s, other, kLanes);
  }
  if (weight == nullptr || !here) return;
  const float scale = inverse_rms(sum_of_pairs(sum[0], sum[1], sum[2], sum[3]), dim, eps);
  float w[8];
  load8(weight + lane * 8, w);
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = normed(x[i], scale, w[i]);
}

/// What a lane's columns are rotated by.
struct HeadRotation {
  int partner;  // the lane that has the other numbers of the pairs
  bool rotated;
  float sign;
  float4 angles[4] = {};  // cosine, sine, cosine, sine

  /// cos_sin: [rotary_dim / 2][2] of the token; rotary_dim a multiple of 16.
  __device__ __forceinline__ HeadRotation(const float* cos_sin, int rotary_dim, int lane) {
    const int apart = rotary_dim / 16;
    partner = lane < apart ? lane + apart : lane < 2 * apart ? lane - apart : lane;
    rotated = lane < 2 * apart;
    sign = lane < apart ? -1.0F : 1.0F;
    if (!rotated) return;
    const auto* from = reinterpret_cast<const float4*>(cos_sin + min(lane, partner) * 16);
#pragma unroll
    for (int i = 0; i < 4; ++i) angles[i] = from[i];
  }

  /// By all lanes; those that do not `apply` lend their numbers alone.
  template <int kLanes>
  __device__ __forceinline__ void turn(float (&x)[8], bool apply) const {
    float y[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) y[i] = __shfl_sync(0xffffffffU, x[i], partner, kLanes);
    if (!apply || !rotated) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4 a = angles[i];
      x[2 * i] = turned(x[2 * i], y[2 * i], a.x, sign * a.y);
      x[2 * i + 1] = turned(x[2 * i + 1], y[2 * i + 1], a.z, sign * a.w);
    }
  }
};

}  // namespace treadle::cuda
