// The end of a long head from the counts of a scan and one pass that gathers the tokens around it.
// Results are the same in every thread of the team.
#pragma once

#include "sampling/select.cuh"

namespace treadle::cuda {

/// What a head is bounded by, and the tokens to list on the way.
struct Wanted {
  int rank;      // tokens, 0: any number
  double share;  // of the weight of these
  int top;       // tokens to list
  bool log_sum;
};

/// Finds the windows from the counts of a scan. The tokens of a slice are taken for equally heavy:
/// several sigma of the error that this makes are looked at around the end by weight, or less where
/// these would be too many tokens.
template <bool kCluster>
__device__ __forceinline__ void find_windows(const Part<kCluster>& part, const Slices& slices,
                                             const Wanted& wanted, RowShared& s,
                                             const Team<kCluster>& team) {
  const int above = s.counter;  // tokens in slice 0, whose weight is known
  uint64_t weight = 0;
  for (int i = threadIdx.x; i < min(above, kCandidates); i += kRowThreads) {
    weight += units_of(part.weight(logit_of(s.keys[i])));
  }
  const uint64_t unlisted = threadIdx.x == 0 && above > kCandidates ? 1 : 0;
  const PartSums top = team_sums({weight, unlisted, 0}, s, team);
  if (team.rank == 0) {
    const int first = threadIdx.x * kPerThread;
    const float per_slice = part.exponent / slices.slope;  // binary logarithm of a weight
    uint64_t count[kPerThread];
    team_bins(count, s, team);
    running_sums(s.keys, kBins, s, [&](int i) { return count[i - first]; });
    running_sums(s.sums, kBins, s, [&](int i) {
      if (i == 0) return top.first;
      const float middle = static_cast<float>(i) - 0.5F;
      const float each = exp2_approx((slices.top - part.max) * part.exponent - middle * per_slice);
      return static_cast<uint64_t>(static_cast<double>(count[i - first]) * each * kWeightUnit);
    });
    if (threadIdx.x == 0) {
      const uint64_t* counts = s.keys;
      const uint64_t* masses = s.sums;
      const auto before = [](const uint64_t* sums, int i) { return i > 0 ? sums[i - 1] : 0; };
      const auto slice_of = [](const uint64_t* sums, uint64_t target) {
        return min(first_at_least(sums, kBins, target), kBins - 1);
      };
      const auto rank = static_cast<uint64_t>(wanted.rank);
      const bool ranked = rank > 0 && counts[kBins - 1] >= rank;
      const int last = ranked ? slice_of(counts, rank) : kBins - 1;
      double total = static_cast<double>(masses[last]);
      if (ranked) {
        const double left_out = static_cast<double>(counts[last] - rank) /
                                static_cast<double>(counts[last] - before(counts, last));
        total -= left_out * static_cast<double>(masses[last] - before(masses, last));
      }
      Windows w{};
      w.lists = counts[kBins - 1] >= static_cast<uint64_t>(wanted.top);
      const int top_slices =
          w.lists && wanted.top > 0 ? slice_of(counts, static_cast<uint64_t>(wanted.top)) + 1 : 0;
      int low = last;
      int high = last;
      bool apart = false;
      uint64_t keys = ~uint64_t{0};
      double slack = fmin(per_slice / 16.0 + 1e-6, 1.0);
      for (; keys > kCandidates && slack > 1e-7; slack /= 4.0) {
        if (wanted.share < 1.0) {
          const double target = wanted.share * total;
          low = min(slice_of(masses, static_cast<uint64_t>(target * (1.0 - slack))), last);
          high = min(slice_of(masses, static_cast<uint64_t>(target * (1.0 + slack))), last);
        }
        if (top_slices >= low) {
          low = 0;
          high = max(high, top_slices - 1);
        }
        apart = ranked && last > high;
        w.first_key = low > 0 ? static_cast<int>(before(counts, top_slices)) : 0;
        keys = w.first_key + counts[high] - before(counts, low) +
               (apart ? counts[last] - before(counts, last) : 0);
      }
      w.fits = keys <= kCandidates && top.second == 0;
      w.all = !ranked && wanted.share >= 1.0;
      // No token past the end of the slices weighs anything.
      w.top_end = low > 0 ? Slices::begin_of(top_slices) : -INFINITY;
      w.begin = Slices::begin_of(low);
      w.end = fminf(Slices::begin_of(high + 1), slices.end);
      w.rank_begin = apart ? Slices::begin_of(last) : ranked ? w.end : slices.end;
      w.rank_end = apart ? fminf(Slices::begin_of(last + 1), slices.end) : w.end;
      w.end_key = w.first_key + static_cast<int>(counts[high] - before(counts, low));
      w.rank_key = !ranked ? -1
                   : apart ? w.end_key + static_cast<int>(rank - before(counts, last)) - 1
                           : w.first_key + static_cast<int>(rank - before(counts, low)) - 1;
      team.tell(&s.windows, w);
    }
  }
  team.sync();
}

/// The last kept one of the keys that were gathered, -1 when it is not among them. `above`: units
/// of the tokens before the window; `all`: of those before the window about the rank. For one
/// block.
template <bool kShared>
__device__ __forceinline__ int last_kept(const Part<kShared>& part, const Windows& w, double share,
                                         int count, uint64_t above, uint64_t all, RowShared& s) {
  if (share >= 1.0) return w.rank_key;
  running_sums(s.sums, count, s, [&](int i) { return units_of(part.weight(logit_of(s.keys[i]))); });
  const auto before = [&](int key) { return key > 0 ? s.sums[key - 1] : 0; };
  const bool apart = w.rank_key >= w.end_key;
  const uint64_t total = w.rank_key < 0 ? all
                         : apart        ? all + s.sums[w.rank_key] - before(w.end_key)
                                        : above + s.sums[w.rank_key] - before(w.first_key);
  const uint64_t target = target_of(share, total);
  if (target <= above) return -1;
  const int last = first_at_least(s.sums, w.end_key, target - above + before(w.first_key));
  return last < w.end_key ? last : -1;
}

/// The key of the last token that is kept; not found when the slices of the scan did not tell.
/// Leaves in s.warp_draws what the warps' shares of the part keep, in units. Fills in `list` if it
/// can.
template <bool kCluster>
__device__ __forceinline__ Bound bound_by_slices(const Part<kCluster>& part, const Slices& slices,
                                                 const Wanted& wanted, Listed& list, RowShared& s,
                                                 const Team<kCluster>& team) {
  find_windows(part, slices, wanted, s, team);
  const Windows w = s.windows;
  if (w.all || !w.fits) return {w.all, 0};
  uint64_t above = 0;
  uint64_t all = 0;
  uint64_t plain = 0;
  const float end = fmaxf(w.end, w.rank_end);
  const auto visit = [&](const float(&v)[4], bool(&maybe)[4]) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float place = slices.place(v[j]);
      const uint64_t units = units_of(place < w.rank_begin ? part.weight(v[j]) : 0.0F);
      all += units;
      above += place < w.begin ? units : 0;
      maybe[j] = (place < w.top_end) | ((place >= w.begin) & (place < end));
    }
    if (!wanted.log_sum) return;
      // Apart: a branch for each token would make one wait for the other.
#pragma unroll
    for (int j = 0; j < 4; ++j) plain += plain_units(v[j], part.max);
  };
  const int count = gather_keys(part, s, team, visit, [&](float v, int) {
    const float place = slices.place(v);
    return place < w.end || place >= w.rank_begin;  // of those that are not above
  });
  const uint64_t warp_above = warp_inclusive(above);
  const PartSums sums = team_sums({above, all, plain}, s, team);
  if (w.lists) list = {count, wanted.log_sum ? log_of_units(sums.third) : 0.0};
  if (team.rank == 0) {
    const int last =
        count > 0 ? last_kept(part, w, wanted.share, count, sums.first, sums.second, s) : -1;
    if (threadIdx.x == 0) team.tell(&s.bound, Bound{last >= 0, last >= 0 ? s.keys[last] : 0});
  }
  team.sync();
  const Bound bound = s.bound;
  const int warp = threadIdx.x / 32;
  const Range share = warp_share({0, part.count}, warp);
  const int keys = team.rank == 0 ? count : s.part_counts[team.rank];
  uint64_t sum = threadIdx.x % 32 == 31 ? warp_above : 0;
  for (int i = threadIdx.x % 32; i < keys; i += 32) {
    const uint64_t key = s.keys[i];
    const float v = logit_of(key);
    const int at = id_of(key) - part.first;
    if (key >= bound.least && slices.place(v) >= w.begin && at >= share.begin && at < share.end) {
      sum += units_of(part.weight(v));
    }
  }
  sum = warp_inclusive(sum);
  if (threadIdx.x % 32 == 31) s.warp_draws[warp] = sum;
  return bound;
}

}  // namespace treadle::cuda
