// What a team of thread blocks knows about its row, passes over a block's part of it, and the tools
// of one block: sums and a sort in shared memory.
//
// Tokens are ranked by a 64-bit key: the logit's bits in an order that compares as integers, then
// the complement of the id. Weights are added up as whole numbers of 2^-40, so that sums are the
// same in whatever order they are made, and a search over running sums never contradicts the total.
#pragma once

#include <cfloat>
#include <cstdint>

#include "common/ptx.cuh"
#include "sampling/team.cuh"

namespace treadle::cuda {

constexpr int kRowThreads = 512;
constexpr int kRowWarps = kRowThreads / 32;
constexpr int kCandidates = 2048;  // that are sorted in shared memory
constexpr int kBins = 2048;
constexpr int kPerThread = kCandidates / kRowThreads;
constexpr float kWeightUnit = 1099511627776.0F;  // 2^40
constexpr float kLog2E = 1.4426950408889634F;
static_assert(kBins == kCandidates && kPerThread == 4);

__device__ __forceinline__ uint32_t ordered_bits(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0F);  // -0 ranks with +0
  return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000U);
}
__device__ __forceinline__ uint64_t rank_key(float x, int id) {
  return (uint64_t{ordered_bits(x)} << 32) | (0xffffffffU - static_cast<uint32_t>(id));
}
__device__ __forceinline__ float logit_of(uint64_t key) {
  const auto o = static_cast<uint32_t>(key >> 32);
  return __uint_as_float((o & 0x80000000U) != 0 ? o ^ 0x80000000U : ~o);
}
__device__ __forceinline__ int id_of(uint64_t key) {
  return static_cast<int>(0xffffffffU - static_cast<uint32_t>(key));
}

/// A block's part of a row. With kShared it lies in shared memory, filled up with -inf to whole
/// vectors; else it is the row itself in global memory.
template <bool kShared>
struct Part {
  const float* x;  // [count]
  int first;       // id of x[0]
  int count;
  bool aligned;    // x may be read four at a time
  float exponent;  // log2(e) / temperature
  // Of the whole row:
  int vocab;
  float max;
  float min;  // about the smallest finite logit

  /// x[i .. i + 4), -inf from `end` on. A part that is aligned has whole vectors.
  __device__ __forceinline__ float4 four(int i, int end) const {
    float4 v = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
    if (kShared || aligned) {
      if (i < end) v = *reinterpret_cast<const float4*>(x + i);
      return v;
    }
    if (i < end) v.x = x[i];
    if (i + 1 < end) v.y = x[i + 1];
    if (i + 2 < end) v.z = x[i + 2];
    if (i + 3 < end) v.w = x[i + 3];
    return v;
  }
  __device__ __forceinline__ uint64_t key(float v, int i) const { return rank_key(v, first + i); }
  /// key(v, i) >= least; any token reaches 0.
  __device__ __forceinline__ bool reaches(float v, int i, uint64_t least) const {
    if (least == 0) return true;
    const float bound = logit_of(least);
    return v > bound || (v == bound && first + i <= id_of(least));
  }
  /// exp((v - max) / temperature)
  __device__ __forceinline__ float weight(float v) const {
    return exp2_approx((v - max) * exponent);
  }
};

__device__ __forceinline__ uint64_t units_of(float weight) {
  return __float2ull_rz(weight * kWeightUnit);
}

/// f(x[i .. i + 4), i) over [begin, end), dealt out to `count` threads of which this is `rank`; a
/// thread meets its elements by ascending i. begin is a multiple of 4.
template <bool kShared, class F>
__device__ __forceinline__ void for_each_four(const Part<kShared>& part, int begin, int end,
                                              int rank, int count, F&& f) {
  // Global memory is far away: all loads of a round are under way before the first is looked at.
  constexpr int kAtOnce = kShared ? 2 : 5;
  const int step = 4 * count;
  for (int first = begin + 4 * rank; first < end; first += kAtOnce * step) {
    float4 v[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) v[j] = part.four(first + j * step, end);
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (first + j * step < end) f(v[j], first + j * step);
    }
  }
}

/// f(x[i], i) in the same way; elements past the end show as -inf.
template <bool kShared, class F>
__device__ __forceinline__ void for_each_logit(const Part<kShared>& part, int begin, int end,
                                               int rank, int count, F&& f) {
  for_each_four(part, begin, end, rank, count, [&](const float4& v, int i) {
    f(v.x, i);
    f(v.y, i + 1);
    f(v.z, i + 2);
    f(v.w, i + 3);
  });
}

/// The same over the whole part, all threads of the block.
template <bool kShared, class F>
__device__ __forceinline__ void for_each_logit(const Part<kShared>& part, F&& f) {
  for_each_logit(part, 0, part.count, threadIdx.x, kRowThreads, static_cast<F&&>(f));
}

/// What one pass over a part tells.
struct PartScan {
  uint64_t best_key;  // its id counts where it was asked for
  double weight;      // about the sum of exp((x - max) / temperature), with the part's own max
  float max;          // NaN when a logit is
  float min;          // smallest finite logit of a quarter of the tokens
  float group_min;    // smallest finite one of the groups' best logits
};

/// Shared memory of a block. Marks of seen tokens lie over it while logits are adjusted.
struct RowShared {
  uint64_t keys[kCandidates];
  union {
    uint64_t sums[kCandidates];
    uint32_t bins[kBins];
  };
  // Written by the other blocks of the team:
  PartScan parts[kMaxTeam];
  uint64_t part_sums[kMaxTeam];
  uint64_t part_above[kMaxTeam];
  uint64_t part_softmax[kMaxTeam];
  int part_counts[kMaxTeam];
  int found_bin;       // -1: none
  uint64_t found_u64;  // with it
  // The block's own:
  uint64_t warp_u64[kRowWarps];
  double warp_f64[kRowWarps];
  float warp_f32[3 * kRowWarps];
  uint64_t total;
  int index;
  int counter;
};

__device__ __forceinline__ uint64_t warp_inclusive(uint64_t v) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const uint64_t below = __shfl_up_sync(0xffffffffU, v, d);
    if (lane >= d) v += below;
  }
  return v;
}

/// Inclusive sum over the threads of the block.
__device__ __forceinline__ uint64_t block_inclusive(uint64_t v, RowShared& s) {
  const int warp = threadIdx.x / 32;
  v = warp_inclusive(v);
  __syncthreads();
  if (threadIdx.x % 32 == 31) s.warp_u64[warp] = v;
  __syncthreads();
  for (int w = 0; w < warp; ++w) v += s.warp_u64[w];
  return v;
}

/// The sum over the threads of the block, the same in all of them.
__device__ __forceinline__ uint64_t block_total(uint64_t v, RowShared& s) {
  v = warp_inclusive(v);
  __syncthreads();
  if (threadIdx.x % 32 == 31) s.warp_u64[threadIdx.x / 32] = v;
  __syncthreads();
  uint64_t total = 0;
  for (int w = 0; w < kRowWarps; ++w) total += s.warp_u64[w];
  return total;
}

/// Sorts a[0..n) so that the largest comes first; n is a power of two. A warp compares within 64
/// neighbours as long as the distance is at most 32, so only larger ones need the whole block.
__device__ inline void sort_descending(uint64_t* a, int n) {
  bool whole_block = true;
  for (int size = 2; size <= n; size *= 2) {
    for (int apart = size / 2; apart > 0; apart /= 2) {
      if (whole_block || apart > 32) {
        __syncthreads();
      } else {
        __syncwarp();
      }
      whole_block = apart > 32;
      for (int i = threadIdx.x; i < n / 2; i += kRowThreads) {
        const int low = ((i & ~(apart - 1)) << 1) | (i & (apart - 1));
        const uint64_t x = a[low];
        const uint64_t y = a[low + apart];
        if ((x < y) == ((low & size) == 0)) {
          a[low] = y;
          a[low + apart] = x;
        }
      }
    }
  }
  __syncthreads();
}

/// Sorts s.keys[0..n), the largest first; overwrites what follows up to a power of two.
__device__ __forceinline__ void sort_keys(RowShared& s, int n) {
  constexpr int kFew = 128;
  __syncthreads();
  if (n <= kFew) {
    // Each key's place is the number of larger ones.
    const int i = threadIdx.x;
    const uint64_t key = i < n ? s.keys[i] : 0;
    int place = 0;
    for (int j = 0; j < n && i < n; ++j) place += s.keys[j] > key ? 1 : 0;
    __syncthreads();
    if (i < n) s.keys[place] = key;
    __syncthreads();
    return;
  }
  int size = 2 * kFew;
  while (size < n) size *= 2;
  for (int i = n + threadIdx.x; i < size; i += kRowThreads) s.keys[i] = 0;
  sort_descending(s.keys, size);
}

/// Fills s.sums with running sums of units(i) over i < n <= kCandidates; zero units past n.
template <class F>
__device__ __forceinline__ void running_sums(int n, RowShared& s, F&& units) {
  uint64_t own[kPerThread];
  uint64_t sum = 0;
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const int i = threadIdx.x * kPerThread + j;
    sum += i < n ? units(i) : 0;
    own[j] = sum;
  }
  const uint64_t before = block_inclusive(sum, s) - sum;
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) s.sums[threadIdx.x * kPerThread + j] = before + own[j];
  __syncthreads();
}

/// Index of the first running sum that is at least `target`, n when there is none.
__device__ __forceinline__ int first_reaching(int n, uint64_t target, RowShared& s) {
  if (threadIdx.x == 0) s.index = n;
  __syncthreads();
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const int i = threadIdx.x * kPerThread + j;
    if (i < n && s.sums[i] >= target && (i == 0 || s.sums[i - 1] < target)) s.index = i;
  }
  __syncthreads();
  const int found = s.index;
  __syncthreads();
  return found;
}

}  // namespace treadle::cuda
