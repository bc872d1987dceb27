// The first pass over a row: into shared memory where there is a place for it, and what every way
// of choosing needs to know.
#pragma once

#include "sampling/slices.cuh"

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
  Slices slices;  // in which tokens were counted, where they were
};

__device__ __forceinline__ float finite_or_max(float x) { return x > -INFINITY ? x : FLT_MAX; }

/// Of the block's values, the same in every thread.
template <class Op>
__device__ __forceinline__ float block_reduce(float x, RowShared& s, Op&& op) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) x = op(x, __shfl_xor_sync(0xffffffffU, x, d));
  __syncthreads();
  if (threadIdx.x % 32 == 0) s.warp_f32[threadIdx.x / 32] = x;
  __syncthreads();
  for (int w = 0; w < kRowWarps; ++w) x = op(x, s.warp_f32[w]);
  return x;
}

__device__ __forceinline__ float smaller(float a, float b) { return fminf(a, b); }

/// Slices below the best two hundred tokens or so, as far as some thousand tokens all over the row
/// tell: the heaviest tokens are too uneven to be taken together.
template <bool kCluster>
__device__ __forceinline__ Slices sample_slices(const Part<false>& source, RowShared& s,
                                                const Team<kCluster>& team) {
  constexpr int kVectors = 2;  // of each thread
  constexpr int kTop = 4;      // best of how many of a warp's tokens are above
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int apart = 4 * max(source.count / (4 * kVectors * kRowThreads), 1);
  float best = -INFINITY;  // of the warp's tokens, which lie all over the part
  float least = FLT_MAX;
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    const float4 v = source.four(apart * (j * kRowThreads + lane * kRowWarps + warp), source.count);
    for (const float x : {v.x, v.y, v.z, v.w}) {
      best = fmaxf(best, x);
      least = fminf(least, finite_or_max(x));
    }
  }
#pragma unroll
  for (int d = 16; d > 0; d /= 2) best = fmaxf(best, __shfl_xor_sync(0xffffffffU, best, d));
  least = block_reduce(least, s, smaller);
  __syncthreads();
  if (lane == 0) s.warp_f32[warp] = best;
  __syncthreads();
  best = s.warp_f32[lane % kRowWarps];
  int above = 0;
  for (int w = 0; w < kRowWarps; ++w) {
    const float other = s.warp_f32[w];
    above += other > best || (other == best && w < lane % kRowWarps) ? 1 : 0;
  }
  // Where most of the row is barred, one of fewer.
  const uint32_t ends = __ballot_sync(0xffffffffU, above < kTop && best > -INFINITY);
  const uint32_t end = __ballot_sync(0xffffffffU, above == kTop - 1) & ends;
  const int chosen = __ffs(static_cast<int>(end != 0 ? end : ends)) - 1;
  float most = __shfl_sync(0xffffffffU, best, max(chosen, 0));
  team.wait_for_all();
  team.share(s.part_sample, make_float2(most, least));
  team.sync();
  for (int b = 0; b < team.size; ++b) {
    most = fmaxf(most, s.part_sample[b].x);
    least = fminf(least, s.part_sample[b].y);
  }
  return slices_of_sample(most, least, source.exponent);
}

/// Counts four tokens; those above the slices are also listed in s.keys, as far as there is room.
__device__ __forceinline__ void count_four(const Part<false>& source, const Slices& slices,
                                           const float4& v, int i, RowShared& s) {
  const float x[4] = {v.x, v.y, v.z, v.w};
  float place[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) place[j] = slices.place(x[j]);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    count_shared_if(slices.has(place[j]), &s.bins[slices.slice(place[j])]);
  }
  if (fminf(fminf(place[0], place[1]), fminf(place[2], place[3])) < 1.0F) {
    append_keys(source, x, i, {place[0] < 1.0F, place[1] < 1.0F, place[2] < 1.0F, place[3] < 1.0F},
                s);
  }
}

/// Reads `source`, the part in global memory; with kCopies also copies it to `copy`, in vectors.
template <bool kCounts, bool kCopies>
__device__ __forceinline__ PartScan scan_part(const Part<false>& source, const Slices& slices,
                                              float* copy, bool wants_id, GroupBest& groups,
                                              RowShared& s) {
  float best[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
  float own_max = -INFINITY;
  int own_at = 0;  // the first vector that holds it
  if (threadIdx.x == 0) {
    s.index = source.count;
    s.counter = 0;
  }
  if constexpr (kCounts) {
    clear_bins(s);
  } else {
    __syncthreads();
  }
  for_each_four(source, Order::kForward, [&](const float4& v, int i) {
    if constexpr (kCopies) *reinterpret_cast<float4*>(copy + i) = v;
    best[0] = max_or_nan(best[0], v.x);
    best[1] = max_or_nan(best[1], v.y);
    best[2] = max_or_nan(best[2], v.z);
    best[3] = max_or_nan(best[3], v.w);
    if constexpr (kCounts) {
      count_four(source, slices, v, i, s);
    } else {
      const float here = fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w));
      if (here > own_max) {
        own_max = here;
        own_at = i;
      }
    }
  });

  float max = max_or_nan(max_or_nan(best[0], best[1]), max_or_nan(best[2], best[3]));
  float group_min = FLT_MAX;
#pragma unroll
  for (int g = 0; g < 4; ++g) {
    groups.logit[g] = best[g];
    group_min = fminf(group_min, finite_or_max(best[g]));
  }
  max = block_reduce(max, s, max_or_nan);
  group_min = block_reduce(group_min, s, smaller);
  PartScan scan{.best_key = source.key(max, 0), .max = max, .group_min = group_min};
  if (wants_id && max > -INFINITY) {  // the same in all threads
    if (own_max == max) {
      const float4 v = source.four(own_at, source.count);
      atomicMin(&s.index, own_at + (v.x == max ? 0 : v.y == max ? 1 : v.z == max ? 2 : 3));
    }
    __syncthreads();
    scan.best_key = source.key(max, s.index);
  }
  return scan;
}

/// Scans the row and fills in part.max, which is not finite when the row is damaged or all barred.
/// With kCounts the tokens are counted in slices, too; without it the best id may be asked for.
template <bool kCounts, bool kCluster>
__device__ __forceinline__ Scan scan_row(const Part<false>& source, float* copy, bool wants_id,
                                         Part<kCluster>& part, RowShared& s,
                                         const Team<kCluster>& team) {
  Scan scan{};
  if constexpr (kCounts) {
    scan.slices = sample_slices(source, s, team);
  }
  const PartScan own =
      scan_part<kCounts, kCluster>(source, scan.slices, copy, wants_id, scan.groups, s);
  if constexpr (!kCounts) team.wait_for_all();
  team.share(s.parts, own);
  team.sync();
  part.max = -INFINITY;
  scan.groups.min = FLT_MAX;
  for (int b = 0; b < team.size; ++b) {
    part.max = max_or_nan(part.max, s.parts[b].max);
    scan.best_key = max(scan.best_key, s.parts[b].best_key);
    scan.groups.min = fminf(scan.groups.min, s.parts[b].group_min);
  }
  return scan;
}

}  // namespace treadle::cuda
