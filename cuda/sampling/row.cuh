// What a team of thread blocks knows about its row, passes over a block's part of it, and the tools
// of one block: sums and a sort in shared memory.
//
// Tokens are ranked by a 64-bit key: the logit's bits in an order that compares as integers, then
// the complement of the id. Weights are added up as whole numbers of 2^-40, so that sums are the
// same in whatever order they are made, and a search over running sums never contradicts the total.
#pragma once

#include <cfloat>
#include <climits>
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
  float max;       // of the whole row

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
  /// key(v, i) >= least for a v above -inf.
  __device__ __forceinline__ bool reaches(float v, int i, uint64_t least) const {
    const float bound = least > 0 ? logit_of(least) : -INFINITY;
    return (v > bound) | ((v == bound) & (first + i <= id_of(least)));
  }
  /// exp((v - max) / temperature)
  __device__ __forceinline__ float weight(float v) const {
    return exp2_approx((v - max) * exponent);
  }
};

__device__ __forceinline__ uint64_t units_of(float weight) {
  return __float2ull_rz(weight * kWeightUnit);
}

/// Tokens [begin, end) of a part; begin is a multiple of 4.
struct Range {
  int begin;
  int end;
};

/// A warp's share of a range: neighbours, so that its sums tell where in the row a weight lies.
__device__ __forceinline__ Range warp_share(Range all, int warp) {
  const int each = ((all.end - all.begin + kRowWarps - 1) / kRowWarps + 3) / 4 * 4;
  const int begin = min(all.begin + warp * each, all.end);
  return {begin, min(begin + each, all.end)};
}

enum class Order { kForward, kBackward };

/// f(x[i .. i + 4), i) over the warp's range. Forward a thread meets its elements by ascending i;
/// a pass in the other direction than the one before finds its end in the L2 cache.
template <bool kShared, class F>
__device__ __forceinline__ void for_each_four(const Part<kShared>& part, Range range, Order order,
                                              F&& f) {
  // Global memory is far away: the loads of the next round are under way during this one.
  constexpr int kAtOnce = kShared ? 2 : 3;
  constexpr int kStep = 4 * 32 * kAtOnce;
  const int rounds = (range.end - range.begin + kStep - 1) / kStep;
  const bool backward = order == Order::kBackward;
  int first =
      range.begin + 4 * static_cast<int>(threadIdx.x % 32) + (backward ? (rounds - 1) * kStep : 0);
  float4 v[kAtOnce];
  const auto load = [&](bool any) {
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j)
      v[j] = part.four(first + 4 * 32 * j, any ? range.end : INT_MIN);
  };
  load(rounds > 0);
  for (int round = 0; round < rounds; ++round) {
    float4 now[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) now[j] = v[j];
    const int i = first;
    first += backward ? -kStep : kStep;
    load(round + 1 < rounds);
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (i + 4 * 32 * j < range.end) f(now[j], i + 4 * 32 * j);
    }
  }
}

/// The same over the block's part, of which each warp has a share.
template <bool kShared, class F>
__device__ __forceinline__ void for_each_four(const Part<kShared>& part, Order order, F&& f) {
  for_each_four(part, warp_share({0, part.count}, threadIdx.x / 32), order, static_cast<F&&>(f));
}

/// What the first pass over a part tells.
struct PartScan {
  uint64_t best_key;  // its id counts where it was asked for
  float max;          // NaN when a logit is
  float group_min;    // smallest finite one of the groups' best logits
};

struct PartSums {
  uint64_t first;
  uint64_t second;
};

/// A bin of counted tokens and what of its sum is left to reach a target.
struct Found {
  int bin;  // -1: none
  uint64_t rest;
};

/// Where by slices of the logits the kept tokens end, see find_windows().
struct Windows {
  bool fits;
  bool all;                    // nothing is left out
  float begin, end;            // places between which the last kept token is looked for
  float rank_begin, rank_end;  // the same of the last one by rank, where that is further on
  int first_keys;              // tokens between begin and end
  int rank_at;  // index of the last one by rank among all tokens looked at; -1 without a rank
};

struct Bound {
  bool found;
  uint64_t least;  // key of the last kept token
};

/// Shared memory of a block. Marks of seen tokens lie over it while logits are adjusted.
struct RowShared {
  uint64_t keys[kCandidates];
  union {
    uint64_t sums[kCandidates];
    uint32_t bins[2 * kBins];  // the low words, then the high words
  };
  // Written by the other blocks of the team:
  PartScan parts[kMaxTeam];
  float2 part_sample[kMaxTeam];  // largest, smallest
  PartSums part_sums[kMaxTeam];
  uint64_t part_draws[kMaxTeam];
  int part_counts[kMaxTeam];
  Found found;
  Windows windows;
  Bound bound;
  // The block's own:
  uint64_t warp_u64[kRowWarps];
  uint64_t warp_draws[kRowWarps];  // units that the warps' shares of the part keep
  float warp_f32[kRowWarps];
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

/// out[i] = running sum of f(i) over i < n <= kCandidates, where f(i) is 0 from n on.
template <class F>
__device__ __forceinline__ void running_sums(uint64_t* out, int n, RowShared& s, F&& f) {
  uint64_t own[kPerThread];
  uint64_t sum = 0;
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const int i = threadIdx.x * kPerThread + j;
    sum += i < n ? f(i) : 0;
    own[j] = sum;
  }
  const uint64_t before = block_inclusive(sum, s) - sum;
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) out[threadIdx.x * kPerThread + j] = before + own[j];
  __syncthreads();
}

/// Index of the first of n running sums that is at least `target`, n when there is none.
__device__ __forceinline__ int first_at_least(const uint64_t* sums, int n, uint64_t target) {
  int begin = 0;
  int end = n;
  while (begin < end) {
    const int middle = (begin + end) / 2;
    if (sums[middle] >= target) {
      end = middle;
    } else {
      begin = middle + 1;
    }
  }
  return begin;
}

}  // namespace treadle::cuda
