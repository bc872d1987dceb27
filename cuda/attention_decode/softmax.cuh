// The online softmax of one warp's 16 keys, on the accumulators of two products of 16 rows x 8 keys.
#pragma once

#include "common/ptx.cuh"

namespace treadle::cuda::decode {

constexpr int kWarpKeys = 16;

/// Row r of the product is lane / 4, row r + 8 the second half.
struct RunningSoftmax {
  float max[2];
  float sum[2];  // of this lane's columns only, until the end

  __device__ void clear() {
    max[0] = max[1] = -INFINITY;
    sum[0] = sum[1] = 0.0F;
  }

  static __device__ __forceinline__ int key_of(int i, int lane) {
    return (i >> 2) * 8 + (lane & 3) * 2 + (i & 1);
  }

  /// Scores of keys outside [first, end) become minus infinity.
  static __device__ __forceinline__ void mask(float (&s)[2][4], int lane, int first, int end) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int key = key_of(i, lane);
      if (key < first || key >= end) s[i >> 2][i & 3] = -INFINITY;
    }
  }

  /// s becomes exponentials; what was added before must be multiplied by factor.
  __device__ __forceinline__ void add(float (&s)[2][4], float scale_log2, float (&factor)[2]) {
    float base[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float top =
          quad_max(fmaxf(fmaxf(s[0][2 * h], s[0][2 * h + 1]), fmaxf(s[1][2 * h], s[1][2 * h + 1])));
      const float now = fmaxf(max[h], top);
      base[h] = now == -INFINITY ? 0.0F : now * scale_log2;
      factor[h] = exp2_approx(max[h] * scale_log2 - base[h]);
      max[h] = now;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float& x = s[i >> 2][i & 3];
      x = exp2_approx(x * scale_log2 - base[(i >> 1) & 1]);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      sum[h] =
          sum[h] * factor[h] + (s[0][2 * h] + s[0][2 * h + 1]) + (s[1][2 * h] + s[1][2 * h + 1]);
    }
  }
};

/// Multiplies the rows of accumulators, unless no lane has anything to do.
template <int kTiles>
__device__ __forceinline__ void rescale(float (&out)[kTiles][4], const float (&factor)[2]) {
  if (!__any_sync(0xffffffffU, factor[0] != 1.0F || factor[1] != 1.0F)) return;
#pragma unroll
  for (auto& tile : out) {
    tile[0] *= factor[0];
    tile[1] *= factor[0];
    tile[2] *= factor[1];
    tile[3] *= factor[1];
  }
}

}  // namespace treadle::cuda::decode
