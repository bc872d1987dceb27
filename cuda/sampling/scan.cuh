// The first pass over a row: into shared memory where there is a place for it, and what every way
// of choosing needs to know.
#pragma once

#include "sampling/row.cuh"

namespace treadle::cuda {

/// The best logit of each of four interleaved groups of a thread's share of the part.
struct GroupBest {
  float logit[4];
  float min;  // smallest finite one of the row
};

/// What the pass tells about the row, the same in every thread but for `groups`.
struct Scan {
  uint64_t best_key;  // its id counts where it was asked for
  GroupBest groups;
  double weight;  // about the sum of exp((x - max) / temperature), 0 when it was not wanted
};

__device__ __forceinline__ float finite_or_max(float x) { return x > -INFINITY ? x : FLT_MAX; }

/// The larger one; NaN when either is.
__device__ __forceinline__ float max_or_nan(float a, float b) {
  float y;
  asm("max.NaN.f32 %0, %1, %2;\n" : "=f"(y) : "f"(a), "f"(b));
  return y;
}

/// A sum of exp2((x - max) * exponent) while the maximum is still rising.
struct RisingSum {
  float exponent;
  double sum = 0.0;

  __device__ void raise(float from, float to) { sum *= exp2_approx((from - to) * exponent); }
  __device__ void add(const float4& v, float max) {
    sum += (exp2_approx((v.x - max) * exponent) + exp2_approx((v.y - max) * exponent)) +
           (exp2_approx((v.z - max) * exponent) + exp2_approx((v.w - max) * exponent));
  }
};

/// The block's sum, the same in every thread. `lanes`: kRowWarps values of shared memory.
__device__ __forceinline__ double block_sum(double x, double* lanes) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(0xffffffffU, x, d);
  if (threadIdx.x % 32 == 0) lanes[threadIdx.x / 32] = x;
  __syncthreads();
  double sum = 0.0;
  for (int w = 0; w < kRowWarps; ++w) sum += lanes[w];
  return sum;
}

/// Reads `source`, the part in global memory; with kCopies also copies it to `copy`, in vectors.
template <bool kWeight, bool kCopies>
__device__ __forceinline__ PartScan scan_part(const Part<false>& source, float* copy, bool wants_id,
                                              GroupBest& groups, RowShared& s) {
  float best[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
  float own_max = -INFINITY;
  int own_at = 0;  // the first vector that holds it
  float least = FLT_MAX;
  float top = -FLT_MAX;
  RisingSum weight{source.exponent};
  for_each_four(source, 0, source.count, threadIdx.x, kRowThreads, [&](const float4& v, int i) {
    if constexpr (kCopies) *reinterpret_cast<float4*>(copy + i) = v;
    best[0] = max_or_nan(best[0], v.x);
    best[1] = max_or_nan(best[1], v.y);
    best[2] = max_or_nan(best[2], v.z);
    best[3] = max_or_nan(best[3], v.w);
    const float here = fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w));
    if (here > own_max) {
      own_max = here;
      own_at = i;
    }
    least = fminf(least, finite_or_max(v.x));
    if constexpr (kWeight) {
      if (own_max > top) {
        weight.raise(top, own_max);
        top = own_max;
      }
      weight.add(v, top);
    }
  });

  float max = max_or_nan(max_or_nan(best[0], best[1]), max_or_nan(best[2], best[3]));
  float group_min = FLT_MAX;
#pragma unroll
  for (int g = 0; g < 4; ++g) {
    groups.logit[g] = best[g];
    group_min = fminf(group_min, finite_or_max(best[g]));
  }
#pragma unroll
  for (int d = 16; d > 0; d /= 2) {
    max = max_or_nan(max, __shfl_xor_sync(0xffffffffU, max, d));
    group_min = fminf(group_min, __shfl_xor_sync(0xffffffffU, group_min, d));
    least = fminf(least, __shfl_xor_sync(0xffffffffU, least, d));
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) {
    s.warp_f32[threadIdx.x / 32] = max;
    s.warp_f32[kRowWarps + threadIdx.x / 32] = group_min;
    s.warp_f32[2 * kRowWarps + threadIdx.x / 32] = least;
  }
  if (threadIdx.x == 0) s.index = source.count;
  __syncthreads();
  for (int w = 0; w < kRowWarps; ++w) {
    max = max_or_nan(max, s.warp_f32[w]);
    group_min = fminf(group_min, s.warp_f32[kRowWarps + w]);
    least = fminf(least, s.warp_f32[2 * kRowWarps + w]);
  }
  PartScan scan{.best_key = source.key(max, 0), .max = max, .min = least, .group_min = group_min};
  if (!(max > -INFINITY)) return scan;  // the same in all threads
  if (wants_id) {
    if (own_max == max) {
      const float4 v = source.four(own_at, source.count);
      atomicMin(&s.index, own_at + (v.x == max ? 0 : v.y == max ? 1 : v.z == max ? 2 : 3));
    }
    __syncthreads();
    scan.best_key = source.key(max, s.index);
  }
  if constexpr (kWeight) {
    weight.raise(top, max);
    scan.weight = block_sum(weight.sum, s.warp_f64);
  }
  return scan;
}

/// Scans the row and fills in part.min and part.max, which is not finite when the row is damaged or
/// all barred.
template <bool kWeight, bool kCluster>
__device__ __forceinline__ Scan scan_row(const Part<false>& source, float* copy, bool wants_id,
                                         Part<kCluster>& part, RowShared& s,
                                         const Team<kCluster>& team) {
  Scan scan{};
  const PartScan own = scan_part<kWeight, kCluster>(source, copy, wants_id, scan.groups, s);
  team.wait_for_all();
  team.share(s.parts, own);
  team.sync();
  part.max = -INFINITY;
  part.min = FLT_MAX;
  scan.groups.min = FLT_MAX;
  for (int b = 0; b < team.size; ++b) {
    part.max = max_or_nan(part.max, s.parts[b].max);
    scan.best_key = max(scan.best_key, s.parts[b].best_key);
    scan.groups.min = fminf(scan.groups.min, s.parts[b].group_min);
    part.min = fminf(part.min, s.parts[b].min);
  }
  part.min = fminf(part.min, part.max);
  for (int b = 0; b < team.size; ++b) {
    const PartScan& other = s.parts[b];
    if (!(other.max > -INFINITY)) continue;
    scan.weight += other.weight * exp2_approx((other.max - part.max) * part.exponent);
  }
  return scan;
}

}  // namespace treadle::cuda
