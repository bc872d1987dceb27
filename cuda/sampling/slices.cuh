// Slices of equal width in the logit, in which tokens are counted.
#pragma once

#include "sampling/shared.cuh"

namespace treadle::cuda {

/// A token's place grows as its logit falls, from 1 at `top`; the whole part of it is its slice.
/// Slice 0 has what is above, the last one all that is below. -inf and NaN have no place below
/// `end`, nor have logits whose weight is no unit, where weights matter.
struct Slices {
  float top;
  float slope;  // slices per unit of the logit
  float end;

  __device__ __forceinline__ float place(float v) const { return fmaf(top - v, slope, 1.0F); }
  __device__ __forceinline__ bool has(float place) const { return place < end; }
  __device__ __forceinline__ int slice(float place) const {
    return static_cast<int>(min(__float2uint_rz(place), static_cast<uint32_t>(kBins - 1)));
  }
  /// Places of a slice lie in [begin_of(slice), begin_of(slice + 1)).
  static __device__ __forceinline__ float begin_of(int slice) {
    return slice <= 0 ? -INFINITY : slice >= kBins ? INFINITY : static_cast<float>(slice);
  }
};

/// With slices from `most` to `least`.
__device__ __forceinline__ Slices slices_between(float most, float least) {
  const float slope = static_cast<float>(kBins - 2) / (most - least);
  // One slice for all when they are equal, or too far apart.
  return {most, isfinite(slope) ? slope : 0.0F, FLT_MAX};
}

/// For weights, when a few tokens lie between `most` and `least`. most: -inf when none is known.
__device__ __forceinline__ Slices slices_of_sample(float most, float least, float exponent) {
  const float reach = 41.0F / exponent;
  const float width = most > -INFINITY ? fminf(most - least, reach) : 1.0F;
  const float slope = fminf(static_cast<float>(kBins - 2) / width, 1e30F);
  return {most, slope, fminf(fmaf(reach, slope, 1.0F), FLT_MAX)};
}

__device__ __forceinline__ void clear_bins(RowShared& s) {
  __syncthreads();
  for (int i = threadIdx.x; i < 2 * kBins; i += kRowThreads) s.bins[i] = 0;
  if (threadIdx.x == 0) s.found.bin = -1;
  __syncthreads();
}

__device__ __forceinline__ void add_to_bin(RowShared& s, int bin, uint64_t value) {
  const auto low = static_cast<uint32_t>(value);
  const uint32_t before = atomicAdd(&s.bins[bin], low);
  const uint32_t high = static_cast<uint32_t>(value >> 32) + (before + low < before ? 1 : 0);
  if (high > 0) atomicAdd(&s.bins[kBins + bin], high);
}

/// The team's sums of bins [kPerThread * threadIdx.x, + kPerThread).
template <bool kCluster>
__device__ __forceinline__ void team_bins(uint64_t (&sum)[kPerThread], RowShared& s,
                                          const Team<kCluster>& team) {
  const int first = threadIdx.x * kPerThread;
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) sum[j] = 0;
#pragma unroll
  for (int b = 0; b < kMaxTeam; ++b) {
    if (b >= team.size) break;
    const uint32_t* bins = team.at(s.bins + first, b);
    const uint4 low = *reinterpret_cast<const uint4*>(bins);
    const uint4 high = *reinterpret_cast<const uint4*>(bins + kBins);
    sum[0] += uint64_t{high.x} << 32 | low.x;
    sum[1] += uint64_t{high.y} << 32 | low.y;
    sum[2] += uint64_t{high.z} << 32 | low.z;
    sum[3] += uint64_t{high.w} << 32 | low.w;
  }
}

/// The bin in which the running sum of the team's bins reaches target(total).
template <bool kCluster, class Target>
__device__ __forceinline__ Found find_bin(RowShared& s, const Team<kCluster>& team,
                                          Target&& target_of_total) {
  team.sync();
  if (team.rank == 0) {
    uint64_t sum[kPerThread];
    team_bins(sum, s, team);
    uint64_t own = 0;
    for (const uint64_t x : sum) own += x;
    const uint64_t end = block_inclusive(own, s);
    if (threadIdx.x == kRowThreads - 1) s.total = end;
    __syncthreads();
    const uint64_t target = target_of_total(s.total);
    uint64_t before = end - own;
    if (before < target && target <= end) {
      int bin = threadIdx.x * kPerThread;
#pragma unroll
      for (int j = 0; j < kPerThread - 1; ++j) {
        if (before + sum[j] >= target) break;
        before += sum[j];
        ++bin;
      }
      team.tell(&s.found, Found{bin, target - before});
    }
  }
  team.sync();
  return s.found;
}

}  // namespace treadle::cuda
