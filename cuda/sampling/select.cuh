// Heads of a row's ranking: the best few tokens into shared memory of the team's first block, or
// the key at which a long head ends. Results are the same in every thread of the team.
#pragma once

#include "sampling/scan.cuh"

namespace treadle::cuda {

/// Counts tokens, or their weights, in slices of equal width in the logit, from the best one down;
/// the last takes all that is left. Within a slice weights are alike: there they are counted as
/// whole numbers of the largest, the finest of which a block's sum has no overflow.
struct Slices {
  bool by_mass;
  float max;
  float lowest;  // below it a weight is no unit
  float exponent;
  float slope;      // slices per unit of the logit
  float per_slice;  // binary logarithm of the ratio of the weights at a slice's ends
  float grain;

  template <bool kShared>
  __device__ Slices(const Part<kShared>& part, float min, bool mass)
      : by_mass(mass), max(part.max), exponent(part.exponent) {
    const float reach = 41.0F / exponent;
    lowest = mass ? max - reach : -FLT_MAX;
    slope = (kBins - 1) / (mass ? fminf(max - min, reach) : max - min);
    if (!isfinite(slope)) slope = 0.0F;
    per_slice = slope > 0.0F ? exponent / slope : 0.0F;
    grain = 4.0e9F / static_cast<float>(part.vocab);
  }
  __device__ __forceinline__ float place(float v) const { return (max - v) * slope; }
  __device__ __forceinline__ int of(float v) const {
    return min(static_cast<int>(place(v)), kBins - 1);
  }
  /// What a token counts in a bin of tokens of `slice`.
  __device__ __forceinline__ uint32_t grains(float v, int slice) const {
    if (!by_mass) return 1;
    return __float2uint_rn(
        grain * exp2_approx(fmaf(v - max, exponent, static_cast<float>(slice) * per_slice)));
  }
  /// Units of weight, or tokens, that such a bin holds.
  __device__ __forceinline__ uint64_t units(uint64_t sum, int slice) const {
    if (!by_mass) return sum;
    const float largest = exp2_approx(-(static_cast<float>(slice) * per_slice));
    return static_cast<uint64_t>(static_cast<double>(sum) * largest * (kWeightUnit / grain));
  }
};

/// Smallest whole number that is at least share * total, between 1 and total.
__device__ __forceinline__ uint64_t target_of(double share, uint64_t total) {
  const auto target = static_cast<uint64_t>(ceil(share * static_cast<double>(total)));
  return min(max(target, uint64_t{1}), total);
}

__device__ __forceinline__ void clear_bins(RowShared& s) {
  __syncthreads();
  for (int i = threadIdx.x; i < kBins; i += kRowThreads) s.bins[i] = 0;
  if (threadIdx.x == 0) s.found_bin = -1;
  __syncthreads();
}

/// Adds up the team's bins, of which bin i holds units(i, sum), and finds the one in which the
/// running sum reaches target(total): s.found_bin, and in s.found_u64 what the bin has to give.
template <bool kCluster, class Units, class Target>
__device__ __forceinline__ void find_bin(RowShared& s, const Team<kCluster>& team, Units&& units,
                                         Target&& target_of_total) {
  team.sync();
  if (team.rank == 0) {
    const int first = threadIdx.x * kPerThread;
    uint64_t sum[kPerThread] = {};
#pragma unroll
    for (int b = 0; b < kMaxTeam; ++b) {
      if (b >= team.size) break;
      const uint4 bins = *reinterpret_cast<const uint4*>(team.at(s.bins + first, b));
      sum[0] += bins.x;
      sum[1] += bins.y;
      sum[2] += bins.z;
      sum[3] += bins.w;
    }
    uint64_t own = 0;
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      sum[j] = units(first + j, sum[j]);
      own += sum[j];
    }
    const uint64_t end = block_inclusive(own, s);
    if (threadIdx.x == kRowThreads - 1) s.total = end;
    __syncthreads();
    const uint64_t target = target_of_total(s.total);
    uint64_t before = end - own;
    if (before < target && target <= end) {
      int found = -1;
      uint64_t rest = 0;
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        if (found < 0 && before + sum[j] >= target) {
          found = first + j;
          rest = target - before;
        }
        before += sum[j];
      }
      for (int b = 0; b < team.size; ++b) {
        *team.at(&s.found_bin, b) = found;
        *team.at(&s.found_u64, b) = rest;
      }
    }
  }
  team.sync();
}

enum class Place { kOut, kAbove, kHere };

struct Gathered {
  int count;       // of the keys, -1 when they do not fit
  uint64_t above;  // units that the tokens weigh which are kAbove, where wanted
  uint64_t total;  // the same of all tokens
};

/// Collects the keys of those of the tokens in(v, i) that are kHere by place(v, i), sorted in the
/// first block, which reads the others' shared memory until the next sync().
template <bool kWeighs, bool kCluster, class PlaceOf, class In>
__device__ __forceinline__ Gathered gather_keys(const Part<kCluster>& part, RowShared& s,
                                                const Team<kCluster>& team, PlaceOf&& place,
                                                In&& in) {
  __syncthreads();
  if (threadIdx.x == 0) s.counter = 0;
  __syncthreads();
  uint64_t above = 0;
  uint64_t total = 0;
  for_each_logit(part, [&](float v, int i) {
    if (!(v > -INFINITY && in(v, i))) return;
    const Place at = place(v, i);
    if constexpr (kWeighs) {
      const uint64_t units = units_of(part.weight(v));
      total += units;
      if (at == Place::kAbove) above += units;
    }
    if (at != Place::kHere) return;
    const int slot = atomicAdd(&s.counter, 1);
    if (slot < kCandidates) s.keys[slot] = part.key(v, i);
  });
  if constexpr (kWeighs) {
    total = block_total(total, s);
    above = block_total(above, s);
  }
  __syncthreads();
  team.share(s.part_counts, s.counter);
  if constexpr (kWeighs) {
    team.share(s.part_sums, total);
    team.share(s.part_above, above);
  }
  team.sync();
  Gathered all{};
  for (int b = 0; b < team.size; ++b) {
    all.count += s.part_counts[b];
    if constexpr (kWeighs) {
      all.total += s.part_sums[b];
      all.above += s.part_above[b];
    }
  }
  if (all.count > kCandidates) all.count = -1;
  if (all.count > 0 && team.rank == 0) {
    // All blocks at once: each has some of the threads.
    const int threads = kRowThreads / team.size;
    const int b = threadIdx.x / threads;
    if (b > 0) {
      const uint64_t* keys = team.at(s.keys, b);
      int begin = 0;
      for (int before = 0; before < b; ++before) begin += s.part_counts[before];
      for (int i = threadIdx.x % threads; i < s.part_counts[b]; i += threads) {
        s.keys[begin + i] = keys[i];
      }
    }
    sort_keys(s, all.count);
  }
  return all;
}

struct TopFound {
  int count;       // keys, best first, with the head that was asked for (by mass: most likely); -1
                   // when they did not fit, 0 when the groups do not bound it
  uint64_t total;  // units that the row weighs; by mass alone
};

/// Tokens up to which gather_top() is worth while: more than half as many as there are groups
/// would be bounded too loosely.
template <bool kCluster>
__device__ __forceinline__ int most_gathered(const Team<kCluster>& team) {
  return min(2 * kRowThreads * team.size, kCandidates * 3 / 4);
}

/// The first `rank` tokens, or with rank 0 a head that weighs `mass`, by way of a bound that the
/// best ones of the groups give: they reach the rank, or the mass, alone, and few other tokens are
/// above the last of them.
template <bool kCluster>
__device__ __forceinline__ TopFound gather_top(const Part<kCluster>& part, const GroupBest& best,
                                               int rank, double mass, RowShared& s,
                                               const Team<kCluster>& team) {
  const Slices slices(part, best.min, rank == 0);
  clear_bins(s);
#pragma unroll
  for (const float v : best.logit) {
    if (v > -INFINITY && v >= slices.lowest) {
      const int slice = slices.of(v);
      atomicAdd(&s.bins[slice], slices.grains(v, slice));
    }
  }
  find_bin(
      s, team, [&](int slice, uint64_t sum) { return slices.units(sum, slice); },
      [&](uint64_t) {
        // By mass a little more, for rounding. Past the total there is no bin.
        return rank == 0 ? static_cast<uint64_t>(mass * (1.0 + 1e-4) * kWeightUnit) + 1
                         : static_cast<uint64_t>(rank);
      });
  const int slice = s.found_bin;
  if (slice < 0) return {};
  const bool all = slice == kBins - 1;
  const auto limit = static_cast<float>(slice + 1);
  const auto place = [&](float v, int) {
    return all || slices.place(v) < limit ? Place::kHere : Place::kOut;
  };
  const auto any = [](float, int) { return true; };
  const Gathered keys = rank == 0 ? gather_keys<true>(part, s, team, place, any)
                                  : gather_keys<false>(part, s, team, place, any);
  return {keys.count, keys.total};
}

/// Key of the last token of a head among the tokens of key >= least: of the first `rank` tokens, or
/// with rank 0 of the shortest head that holds `share` of their weight. `least` when the head is
/// all of them. Each pass counts the tokens in 2048 slices of what is left of the range and keeps
/// the slice in which the head ends, until its tokens fit shared memory. By mass slices are counted
/// in grains and may be off by one; units decide.
template <bool kByMass, bool kCluster>
__device__ __forceinline__ uint64_t last_of_head(const Part<kCluster>& part, int rank, double share,
                                                 uint64_t least, RowShared& s,
                                                 const Team<kCluster>& team) {
  // A first cut by logit: slices even in the logit spread the tokens better than slices of keys.
  const Slices slices(part, part.min, kByMass);
  const auto in = [&](float v, int i) { return v >= slices.lowest && part.reaches(v, i, least); };
  uint64_t rest = static_cast<uint64_t>(rank);
  uint64_t low = 0;
  uint64_t high = ~uint64_t{0};
  int slice = -1;  // of the first cut
  for (;;) {
    const int bits = 64 - __clzll(static_cast<long long>(high - low));
    const int shift = bits > 11 ? bits - 11 : 0;
    // Below 0: above the range that is left; kBins: below it.
    const auto bin_of = [&](float v, int i) {
      const int at = slices.of(v);
      if (slice < 0) return at;
      if (at != slice) return at < slice ? -1 : kBins;
      const uint64_t key = part.key(v, i);
      if (key > high) return -1;
      if (key < low) return kBins;
      return kBins - 1 - static_cast<int>((key - low) >> shift);
    };

    clear_bins(s);
    for_each_logit(part, [&](float v, int i) {
      if (!in(v, i)) return;
      const int bin = bin_of(v, i);
      if (bin < 0 || bin >= kBins) return;
      atomicAdd(&s.bins[bin], slices.grains(v, slice < 0 ? bin : slice));
    });
    find_bin(
        s, team, [&](int bin, uint64_t sum) { return slices.units(sum, slice < 0 ? bin : slice); },
        [&](uint64_t total) {
          return kByMass && slice < 0 ? target_of(share, total) : min(rest, total);
        });
    int bin = s.found_bin;
    if (bin < 0) return least;
    rest = s.found_u64;
    for (;;) {
      const Gathered keys = gather_keys<kByMass>(
          part, s, team,
          [&](float v, int i) {
            const int at = bin_of(v, i);
            return at < bin ? Place::kAbove : at == bin ? Place::kHere : Place::kOut;
          },
          in);
      const uint64_t target = kByMass ? target_of(share, keys.total) : 0;
      if (kByMass && target <= keys.above && bin > 0) {
        team.sync();  // the first block reads the others' keys
        --bin;
        continue;
      }
      if (kByMass) rest = target - min(keys.above, target - 1);
      if (keys.count < 0) break;
      if (team.rank == 0) {
        running_sums(keys.count, s, [&](int i) {
          return kByMass ? units_of(part.weight(logit_of(s.keys[i]))) : uint64_t{1};
        });
        const int last = first_reaching(keys.count, rest, s);
        if (static_cast<int>(threadIdx.x) < team.size) {
          *team.at(&s.found_bin, threadIdx.x) = last < keys.count ? 1 : -1;
          *team.at(&s.found_u64, threadIdx.x) = s.keys[max(min(last, keys.count - 1), 0)];
        }
      }
      team.sync();
      if (s.found_bin > 0 || bin == kBins - 1) return s.found_u64;
      ++bin;
    }
    if (slice < 0) {
      slice = bin;
    } else {
      low += static_cast<uint64_t>(kBins - 1 - bin) << shift;
      const uint64_t top = low + ((uint64_t{1} << shift) - 1);
      high = top < high ? top : high;
    }
  }
}

}  // namespace treadle::cuda
