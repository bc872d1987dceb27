// Heads of a row's ranking: the best few tokens into shared memory, or the key at which a long head
// ends.
#pragma once

#include "sampling/row.cuh"

namespace treadle::cuda {

/// The best logit of each of two interleaved parts of a thread's share of the row.
struct GroupBest {
  float logit[2];
};

struct TopFound {
  int count;  // keys in s.keys, best first: at least the k asked for, or all that are above -inf;
              // -1 when they did not fit
  bool all;   // nothing above -inf was left out
};

/// The k-th best of the groups' best logits is a bound that k tokens reach, and few others do.
/// 1 <= k <= 2 * kRowThreads.
__device__ inline TopFound gather_top(const Row& row, const GroupBest& best, int k, RowShared& s) {
  __syncthreads();
  s.keys[threadIdx.x] = uint64_t{ordered_bits(best.logit[0])} << 32;
  s.keys[threadIdx.x + kRowThreads] = uint64_t{ordered_bits(best.logit[1])} << 32;
  if (threadIdx.x == 0) s.counter = 0;
  sort_descending(s.keys, 2 * kRowThreads);
  const float bound = logit_of(s.keys[k - 1]);
  __syncthreads();
  for_each_logit(row, [&](float v, int i) {
    if (!(v >= bound && v > -INFINITY)) return;
    const int at = atomicAdd(&s.counter, 1);
    if (at < kCandidates) s.keys[at] = rank_key(v, i);
  });
  __syncthreads();
  const int count = s.counter;
  if (count > kCandidates) return {-1, false};
  sort_descending(s.keys, pad_keys(s, count));
  return {count, bound == -INFINITY};
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
  if (threadIdx.x == 0) s.found_i32[0] = n;
  __syncthreads();
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const int i = threadIdx.x * kPerThread + j;
    if (i < n && s.sums[i] >= target && (i == 0 || s.sums[i - 1] < target)) s.found_i32[0] = i;
  }
  __syncthreads();
  const int found = s.found_i32[0];
  __syncthreads();
  return found;
}

/// Smallest whole number that is at least share * total, at least 1.
__device__ __forceinline__ uint64_t target_of(double share, double total) {
  const auto target = static_cast<uint64_t>(ceil(share * total));
  return target > 0 ? target : 1;
}

/// Key of the last token of a head among the tokens of key >= least: of the first `rank` tokens, or
/// with rank 0 of the shortest head that holds `share` of their weight. `least` when the head is
/// all of them. Each pass counts the tokens in 2048 slices of what is left of the range and keeps
/// the slice in which the head ends, until its tokens fit shared memory.
__device__ inline uint64_t last_of_head(const Row& row, int rank, double share, uint64_t least,
                                        RowShared& s) {
  const bool by_mass = rank == 0;
  // A first cut by logit: slices even in the logit spread the tokens better than slices of keys.
  float span = row.max - row.min;
  if (by_mass) span = fminf(span, 28.0F / row.scale);  // beyond it a weight is below 2^-40
  float slope = (kBins - 1) / span;
  if (!isfinite(slope)) slope = 0.0F;
  const auto slice_of = [&](float v) {
    return min(static_cast<int>((row.max - v) * slope), kBins - 1);
  };

  uint64_t target = static_cast<uint64_t>(rank);
  uint64_t low = 0;
  uint64_t high = ~uint64_t{0};
  int slice = -1;  // of the first cut
  for (;;) {
    const int bits = 64 - __clzll(static_cast<long long>(high - low));
    const int shift = bits > 11 ? bits - 11 : 0;
    // Calls f(bin, units, key) for the tokens that are left.
    const auto for_each_left = [&](auto&& f) {
      for_each_logit(row, [&](float v, int i) {
        if (!(v > -INFINITY)) return;
        const uint64_t key = rank_key(v, i);
        if (key < least || key < low || key > high) return;
        const int at = slice_of(v);
        if (slice >= 0 && at != slice) return;
        const uint64_t units = by_mass ? units_of(weight_of(row, v)) : 1;
        if (units == 0) return;
        f(slice < 0 ? at : kBins - 1 - static_cast<int>((key - low) >> shift), units, key);
      });
    };

    __syncthreads();
    for (int i = threadIdx.x; i < kBins; i += kRowThreads) {
      s.bins.count[i] = 0;
      s.bins.low[i] = 0;
      s.bins.high[i] = 0;
    }
    if (threadIdx.x == 0) {
      s.found_i32[0] = -1;
      s.counter = 0;
    }
    __syncthreads();
    for_each_left([&](int bin, uint64_t units, uint64_t /*key*/) {
      atomicAdd(&s.bins.count[bin], 1U);
      if (!by_mass) return;
      const auto part = static_cast<uint32_t>(units);
      const uint32_t carry = atomicAdd(&s.bins.low[bin], part) + part < part ? 1U : 0U;
      const uint32_t rest = static_cast<uint32_t>(units >> 32) + carry;
      if (rest != 0) atomicAdd(&s.bins.high[bin], rest);
    });
    __syncthreads();

    const auto sum_of = [&](int bin) {
      return by_mass ? (uint64_t{s.bins.high[bin]} << 32) | s.bins.low[bin]
                     : uint64_t{s.bins.count[bin]};
    };
    uint64_t own = 0;
    for (int j = 0; j < kPerThread; ++j) own += sum_of(threadIdx.x * kPerThread + j);
    const uint64_t end = block_inclusive(own, s);
    if (threadIdx.x == kRowThreads - 1) s.found_u64[1] = end;
    __syncthreads();
    if (by_mass && slice < 0) target = target_of(share, static_cast<double>(s.found_u64[1]));
    uint64_t before = end - own;
    if (before < target && target <= end) {
      int bin = threadIdx.x * kPerThread;
      while (before + sum_of(bin) < target) before += sum_of(bin++);
      s.found_i32[0] = bin;
      s.found_i32[1] = static_cast<int>(s.bins.count[bin]);
      s.found_u64[0] = before;
    }
    __syncthreads();
    const int bin = s.found_i32[0];
    const int count = s.found_i32[1];
    if (bin < 0) return least;
    target -= s.found_u64[0];

    if (count <= kCandidates) {
      for_each_left([&](int at, uint64_t /*units*/, uint64_t key) {
        if (at == bin) s.keys[atomicAdd(&s.counter, 1)] = key;
      });
      __syncthreads();
      sort_descending(s.keys, pad_keys(s, count));
      running_sums(count, s, [&](int i) {
        return by_mass ? units_of(weight_of(row, logit_of(s.keys[i]))) : uint64_t{1};
      });
      const int last = first_reaching(count, target, s);
      const uint64_t key = s.keys[min(last, count - 1)];
      __syncthreads();
      return key;
    }
    if (slice < 0) {
      slice = bin;
    } else {
      low += static_cast<uint64_t>(kBins - 1 - bin) << shift;
      const uint64_t top = low + ((uint64_t{1} << shift) - 1);
      high = top < high ? top : high;
    }
    __syncthreads();
  }
}

}  // namespace treadle::cuda
