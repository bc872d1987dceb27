// Shared memory of a thread block that samples, and its tools there: sums and a sort.
#pragma once

#include "sampling/row.cuh"
#include "sampling/team.cuh"

namespace treadle::cuda {

constexpr int kCandidates = 2048;  // that are sorted in shared memory
constexpr int kBins = 2048;
constexpr int kPerThread = kCandidates / kRowThreads;
static_assert(kBins == kCandidates && kPerThread == 4);

/// What the first pass over a part tells.
struct PartScan {
  uint64_t best_key;  // its id counts where it was asked for
  float max;          // NaN when a logit is
  float group_min;    // smallest finite one of the groups' best logits
};

struct PartSums {
  uint64_t first;
  uint64_t second;
  uint64_t third;
};

/// A bin of counted tokens and what of its sum is left to reach a target.
struct Found {
  int bin;  // -1: none
  uint64_t rest;
};

/// Which tokens a gathering pass looks at, by their place (see Slices), and in what order their
/// keys will be: the best ones, those where the last kept token is, those where the last by rank
/// is.
struct Windows {
  bool fits;
  bool all;                    // nothing is left out
  bool lists;                  // the best ones are among the keys
  float top_end;               // best ones that are wanted for themselves
  float begin, end;            // about the last kept token
  float rank_begin, rank_end;  // about the last by rank, where that is further on
  int first_key, end_key;      // of the tokens in [begin, end)
  int rank_key;                // of the last one by rank, -1 without a rank
};

struct Bound {
  bool found;
  uint64_t least;  // key of the last kept token
};

/// Shared memory of a block; vectors of the row may follow. Marks of seen tokens lie over it while
/// logits are adjusted.
struct alignas(16) RowShared {
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
  int counter;  // of keys, more than there is room for counted, too
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

/// Of up to 32 values, the first at which the running sum exceeds `target`; of the target is left
/// what that one has to give. For whole warps.
__device__ __forceinline__ int choose(const uint64_t* values, int count, uint64_t& target) {
  const int lane = threadIdx.x % 32;
  const uint64_t own = lane < count ? values[lane] : 0;
  const uint64_t sum = warp_inclusive(own);
  const uint32_t beyond = __ballot_sync(0xffffffffU, sum > target);
  const int chosen = beyond != 0 ? __ffs(static_cast<int>(beyond)) - 1 : count - 1;
  target -= __shfl_sync(0xffffffffU, sum - own, chosen);
  return chosen;
}

/// Appends the keys of those of four tokens that are wanted to s.keys, as far as there is room.
template <bool kShared>
__device__ __forceinline__ void append_keys(const Part<kShared>& part, const float (&v)[4], int i,
                                            const bool (&wanted)[4], RowShared& s) {
  int slot = atomicAdd(&s.counter, wanted[0] + wanted[1] + wanted[2] + wanted[3]);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (wanted[j] && slot < kCandidates) s.keys[slot++] = part.key(v[j], i + j);
  }
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
  int size = 64;
  while (size < n) size *= 2;
  __syncthreads();
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
