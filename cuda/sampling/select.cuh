// Heads of a row's ranking, for any row: the best few tokens as a sorted list in the team's first
// block, or the key at which a head ends. Results are the same in every thread of the team.
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
  PartSums all{};
  all.first = block_total(own.first, s);
  all.second = block_total(own.second, s);
  all.third = block_total(own.third, s);
  team.share(s.part_sums, all);
  team.sync();
  all = {};
  for (int b = 0; b < team.size; ++b) {
    all.first += s.part_sums[b].first;
    all.second += s.part_sums[b].second;
    all.third += s.part_sums[b].third;
  }
  return all;
}

/// Collects the keys of the tokens wants(v, i), sorted in the first block; the other blocks have
/// their own. Their count, -1 when they do not fit. Calls visit(v) for every token: true when it
/// may be wanted. Nearly all are not, four at a time and without a branch.
template <bool kCluster, class Visit, class Wants>
__device__ __forceinline__ int gather_keys(const Part<kCluster>& part, RowShared& s,
                                           const Team<kCluster>& team, Visit&& visit,
                                           Wants&& wants) {
  __syncthreads();
  if (threadIdx.x == 0) s.counter = 0;
  __syncthreads();
  for_each_four(part, Order::kBackward, [&](const float4& four, int i) {
    const float v[4] = {four.x, four.y, four.z, four.w};
    bool maybe[4];
    visit(v, maybe);
    if (!((maybe[0] | maybe[1]) | (maybe[2] | maybe[3]))) return;
    append_keys(part, v, i,
                {maybe[0] && wants(v[0], i), maybe[1] && wants(v[1], i + 1),
                 maybe[2] && wants(v[2], i + 2), maybe[3] && wants(v[3], i + 3)},
                s);
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

/// The best tokens, their keys sorted in the first block.
struct Listed {
  int count = -1;        // -1: not listed
  double log_sum = 0.0;  // log(sum of exp(x - max)) of the row, where it was wanted
};

__device__ __forceinline__ uint64_t plain_units(float v, float max) {
  return units_of(exp2_approx((v - max) * kLog2E));
}
__device__ __forceinline__ double log_of_units(uint64_t sum) {
  return log(static_cast<double>(sum) * (1.0 / kWeightUnit));
}

/// Lists at least the first `rank` tokens, or all that are above -inf. The best ones of the groups
/// bound them: few other tokens are above the rank-th of those.
template <bool kWeighs, bool kCluster>
__device__ __forceinline__ Listed list_top(const Part<kCluster>& part, const GroupBest& best,
                                           int rank, RowShared& s, const Team<kCluster>& team) {
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
  Listed list;
  uint64_t sum = 0;
  const auto visit = [&](const float(&v)[4], bool(&maybe)[4]) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      maybe[j] = slices.place(v[j]) < limit;
      if constexpr (kWeighs) sum += plain_units(v[j], part.max);
    }
  };
  list.count = gather_keys(part, s, team, visit, [](float, int) { return true; });
  if constexpr (kWeighs) list.log_sum = log_of_units(team_sums({sum, 0, 0}, s, team).first);
  if (list.count < 0) {
    const uint64_t least = last_of_head<false>(part, rank, 0.0, 0, s, team);
    const auto any = [](const float(&v)[4], bool(&maybe)[4]) {
      for (int j = 0; j < 4; ++j) maybe[j] = v[j] > -INFINITY;
    };
    list.count =
        gather_keys(part, s, team, any, [&](float v, int i) { return part.reaches(v, i, least); });
  }
  return list;
}

}  // namespace treadle::cuda
