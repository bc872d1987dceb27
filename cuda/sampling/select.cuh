// Heads of a row's ranking: the best few tokens as a sorted list in the team's first block, or the
// key at which a long head ends. Results are the same in every thread of the team.
#pragma once

#include "sampling/scan.cuh"

namespace treadle::cuda {

/// Smallest whole number that is at least share * total, between 1 and total.
__device__ __forceinline__ uint64_t target_of(double share, uint64_t total) {
  const auto target = static_cast<uint64_t>(ceil(share * static_cast<double>(total)));
  return min(max(target, uint64_t{1}), total);
}

/// The team's sums of what each thread has.
template <bool kCluster>
__device__ __forceinline__ PartSums team_sums(const PartSums& own, RowShared& s,
                                              const Team<kCluster>& team) {
  const uint64_t first = block_total(own.first, s);
  team.share(s.part_sums, PartSums{first, block_total(own.second, s)});
  team.sync();
  PartSums all{};
  for (int b = 0; b < team.size; ++b) {
    all.first += s.part_sums[b].first;
    all.second += s.part_sums[b].second;
  }
  return all;
}

/// Collects the keys of the tokens wants(v, i), sorted in the first block; the other blocks have
/// their own. Their count, -1 when they do not fit. Calls weigh(v) for every token. Nearly all
/// tokens are passed by, four at a time and without a branch.
template <bool kCluster, class Weigh, class Wants>
__device__ __forceinline__ int gather_keys(const Part<kCluster>& part, RowShared& s,
                                           const Team<kCluster>& team, Weigh&& weigh,
                                           Wants&& wants) {
  __syncthreads();
  if (threadIdx.x == 0) s.counter = 0;
  __syncthreads();
  for_each_four(part, Order::kBackward, [&](const float4& four, int i) {
    const float v[4] = {four.x, four.y, four.z, four.w};
    bool wanted[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      weigh(v[j]);
      wanted[j] = wants(v[j], i + j);
    }
    if (!((wanted[0] | wanted[1]) | (wanted[2] | wanted[3]))) return;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (!wanted[j]) continue;
      const int slot = atomicAdd(&s.counter, 1);
      if (slot < kCandidates) s.keys[slot] = part.key(v[j], i + j);
    }
  });
  __syncthreads();
  team.share(s.part_counts, s.counter);
  team.sync();
  int count = 0;
  for (int b = 0; b < team.size; ++b) count += s.part_counts[b];
  if (count > kCandidates) count = -1;
  if (count > 0 && team.rank == 0) {
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
    sort_keys(s, count);
  }
  team.sync();
  return count;
}

/// Key of the last token of a head among the tokens of key >= least: of the first `rank` tokens, or
/// with kByMass of the shortest head that holds `share` of their weight. `least` when the head is
/// all of them. Sums up the tokens by eleven bits of their keys at a time: exact for any row, and
/// slow.
template <bool kByMass, bool kCluster>
__device__ __forceinline__ uint64_t last_of_head(const Part<kCluster>& part, int rank, double share,
                                                 uint64_t least, RowShared& s,
                                                 const Team<kCluster>& team) {
  constexpr int kDigit = 11;
  static_assert(1 << kDigit == kBins);
  uint64_t known = 0;  // the bits of the key that are
  uint64_t low = 0;
  uint64_t rest = static_cast<uint64_t>(rank);
  int shift = 64;
  while (shift > 0) {
    shift = max(shift - kDigit, 0);
    clear_bins(s);
    for_each_four(part, Order::kForward, [&](const float4& four, int i) {
      for (const float v : {four.x, four.y, four.z, four.w}) {
        const uint64_t key = part.key(v, i++);
        if (!(v > -INFINITY) || key < least || (key & known) != low) continue;
        const int digit = static_cast<int>((key & ~known) >> shift);
        add_to_bin(s, kBins - 1 - digit, kByMass ? units_of(part.weight(v)) : 1);
      }
    });
    const Found found = find_bin(s, team, [&](uint64_t total) {
      return kByMass && known == 0 ? target_of(share, total) : rest;
    });
    if (found.bin < 0) return least;
    rest = found.rest;
    low |= static_cast<uint64_t>(kBins - 1 - found.bin) << shift;
    known = ~uint64_t{0} << shift;
  }
  return low;
}

/// Lists at least the first `rank` tokens, or all that are above -inf, best first; their count. The
/// best ones of the groups bound them: few other tokens are above the rank-th of those. With
/// kWeighs `log_sum` is log(sum of exp(x - max)) of the row.
template <bool kWeighs, bool kCluster>
__device__ __forceinline__ int list_top(const Part<kCluster>& part, const GroupBest& best, int rank,
                                        double& log_sum, RowShared& s, const Team<kCluster>& team) {
  const Slices slices = slices_between(part.max, best.min);
  float limit = -INFINITY;
  if (rank > 0) {
    clear_bins(s);
    for (const float v : best.logit) {
      const float place = slices.place(v);
      if (slices.has(place)) atomicAdd(&s.bins[slices.slice(place)], 1U);
    }
    const Found found = find_bin(s, team, [=](uint64_t) { return static_cast<uint64_t>(rank); });
    limit = found.bin < 0 ? INFINITY : Slices::begin_of(found.bin + 1);
  }
  uint64_t sum = 0;
  const auto weigh = [&](float v) {
    if constexpr (kWeighs) sum += units_of(exp2_approx((v - part.max) * kLog2E));
  };
  int count =
      gather_keys(part, s, team, weigh, [&](float v, int) { return slices.place(v) < limit; });
  if constexpr (kWeighs) {
    const uint64_t total = team_sums({sum, 0}, s, team).first;
    log_sum = log(static_cast<double>(total) * (1.0 / kWeightUnit));
  }
  if (count < 0) {
    const uint64_t least = last_of_head<false>(part, rank, 0.0, 0, s, team);
    count = gather_keys(
        part, s, team, [](float) {},
        [&](float v, int i) { return v > -INFINITY && part.reaches(v, i, least); });
  }
  return count;
}

/// Where the last token ends up that is kept by rank (0: any) and by share of the weight, from the
/// counts of a scan. The tokens of a slice are taken for equally heavy; how far off that may be is
/// how far around the end tokens are looked at, or less where these were too many.
template <bool kCluster>
__device__ __forceinline__ void find_windows(const Part<kCluster>& part, const Slices& slices,
                                             uint64_t rank, double share, RowShared& s,
                                             const Team<kCluster>& team) {
  const int listed = s.counter;
  uint64_t above = 0;
  for (int i = threadIdx.x; i < min(listed, kCandidates); i += kRowThreads) {
    above += units_of(part.weight(logit_of(s.keys[i])));
  }
  // Another thread would count twice.
  const uint64_t missed = threadIdx.x == 0 && listed > kCandidates ? 1 : 0;
  const PartSums beyond = team_sums({above, missed}, s, team);
  if (team.rank == 0) {
    const int first = threadIdx.x * kPerThread;
    const float per_slice = part.exponent / slices.slope;  // binary logarithm of a weight
    uint64_t count[kPerThread];
    team_bins(count, s, team);
    const uint64_t* counts = s.keys;
    const uint64_t* masses = s.sums;
    running_sums(s.keys, kBins, s, [&](int i) { return count[i - first]; });
    running_sums(s.sums, kBins, s, [&](int i) {
      if (i == 0) return beyond.first;
      const float middle = static_cast<float>(i) - 0.5F;
      const float weight =
          exp2_approx((slices.top - part.max) * part.exponent - middle * per_slice);
      return static_cast<uint64_t>(static_cast<double>(count[i - first]) * weight * kWeightUnit);
    });
    if (threadIdx.x == 0) {
      const auto before = [](const uint64_t* sums, int i) { return i > 0 ? sums[i - 1] : 0; };
      const bool ranked = rank > 0 && counts[kBins - 1] >= rank;
      int last = kBins - 1;
      double total = static_cast<double>(masses[last]);
      if (ranked) {
        last = first_at_least(counts, kBins, rank);
        const uint64_t start = before(counts, last);
        const double part_of = static_cast<double>(rank - start) / (counts[last] - start);
        total = before(masses, last) + part_of * (masses[last] - before(masses, last));
      }
      int low = last;
      int high = last;
      uint64_t keys = 0;
      for (double slack = fmin(per_slice + 1e-5, 1.0); slack > 1e-6; slack /= 16.0) {
        if (share < 1.0) {
          const auto at = [&](double weight) {
            return min(first_at_least(masses, kBins, static_cast<uint64_t>(weight)), last);
          };
          low = at(share * total * (1.0 - slack));
          high = at(share * total * (1.0 + slack));
        }
        keys = counts[high] - before(counts, low);
        if (ranked && high < last) keys += counts[last] - before(counts, last);
        if (keys <= kCandidates || share >= 1.0) break;
      }
      Windows w{};
      w.fits = keys <= kCandidates && beyond.second == 0;
      w.all = !ranked && share >= 1.0;
      // No token past the end of the slices weighs anything.
      w.begin = Slices::begin_of(low);
      w.end = fminf(Slices::begin_of(high + 1), slices.end);
      w.first_keys = static_cast<int>(counts[high] - before(counts, low));
      const bool apart = ranked && last > high;
      w.rank_begin = apart ? Slices::begin_of(last) : ranked ? w.end : slices.end;
      w.rank_end = apart ? fminf(Slices::begin_of(last + 1), slices.end) : w.rank_begin;
      w.rank_at = !ranked ? -1
                          : static_cast<int>(rank - before(counts, apart ? last : low)) - 1 +
                                (apart ? w.first_keys : 0);
      team.tell(&s.windows, w);
    }
  }
  team.sync();
}

/// The key of the last token that is kept by rank (0: any) and by share of the weight; not found
/// when the slices of the scan did not tell. Leaves in s.warp_draws what the warp's share of the
/// part keeps, in units.
template <bool kCluster>
__device__ __forceinline__ Bound bound_by_slices(const Part<kCluster>& part, const Slices& slices,
                                                 int rank, double share, RowShared& s,
                                                 const Team<kCluster>& team) {
  find_windows(part, slices, static_cast<uint64_t>(rank), share, s, team);
  const Windows w = s.windows;
  if (w.all || !w.fits) return {w.all, 0};
  uint64_t above = 0;
  uint64_t all = 0;  // down to the last by rank, without its window where it has one of its own
  const auto weigh = [&](float v) {
    const float place = slices.place(v);
    const uint64_t units = units_of(place < w.rank_begin ? part.weight(v) : 0.0F);
    all += units;
    above += place < w.begin ? units : 0;
  };
  const int count = gather_keys(part, s, team, weigh, [&](float v, int) {
    const float place = slices.place(v);
    return ((place >= w.begin) & (place < w.end)) |
           ((place >= w.rank_begin) & (place < w.rank_end));
  });
  const int warp = threadIdx.x / 32;
  const uint64_t warp_above = warp_inclusive(above);
  const PartSums sums = team_sums({above, all}, s, team);
  if (team.rank == 0) {
    Bound bound{};
    if (count > 0) {
      running_sums(s.sums, count, s,
                   [&](int i) { return units_of(part.weight(logit_of(s.keys[i]))); });
      int last = w.rank_at;
      if (share < 1.0) {
        uint64_t total = sums.second;
        if (w.rank_at >= w.first_keys) {
          total += s.sums[w.rank_at] - (w.first_keys > 0 ? s.sums[w.first_keys - 1] : 0);
        } else if (w.rank_at >= 0) {
          total = sums.first + s.sums[w.rank_at];
        }
        const uint64_t target = target_of(share, total);
        last = target > sums.first ? first_at_least(s.sums, w.first_keys, target - sums.first)
                                   : w.first_keys;
        bound.found = last < w.first_keys;
      } else {
        bound.found = true;
      }
      if (bound.found) bound.least = s.keys[last];
    }
    if (threadIdx.x == 0) team.tell(&s.bound, bound);
  }
  team.sync();
  const Bound bound = s.bound;
  if (bound.found) {
    const Range share_of_warp = warp_share({0, part.count}, warp);
    const int keys = team.rank == 0 ? count : s.part_counts[team.rank];
    uint64_t sum = threadIdx.x % 32 == 31 ? warp_above : 0;
    for (int i = threadIdx.x % 32; i < keys; i += 32) {
      const uint64_t key = s.keys[i];
      const int at = id_of(key) - part.first;
      if (key >= bound.least && at >= share_of_warp.begin && at < share_of_warp.end) {
        sum += units_of(part.weight(logit_of(key)));
      }
    }
    sum = warp_inclusive(sum);
    if (threadIdx.x % 32 == 31) s.warp_draws[warp] = sum;
  }
  return bound;
}

}  // namespace treadle::cuda
