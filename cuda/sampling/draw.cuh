// The draw: the first kept token, by id, at which the running weight exceeds uniform * total.
#pragma once

#include "sampling/windows.cuh"

namespace treadle::cuda {

/// What is kept of a row, besides top-k.
struct Filters {
  float top_p;
  float min_p;
  double uniform;
};

/// A running weight above this many units ends the draw.
__device__ __forceinline__ uint64_t draw_target(double uniform, uint64_t total) {
  const auto target = static_cast<uint64_t>(uniform * static_cast<double>(total));
  return target < total ? target : total - 1;
}

/// How many of the first `count` keys of s.keys (best first) top_p keeps. For one block.
template <bool kShared>
__device__ __forceinline__ int kept_keys(const Part<kShared>& part, float top_p, int count,
                                         RowShared& s) {
  if (top_p >= 1.0F) return count;
  running_sums(s.sums, count, s, [&](int i) { return units_of(part.weight(logit_of(s.keys[i]))); });
  return first_at_least(s.sums, count, target_of(top_p, s.sums[count - 1])) + 1;
}

/// From the first `kept` keys of s.keys. For one block.
template <bool kShared>
__device__ __forceinline__ int draw_from_keys(const Part<kShared>& part, const Filters& f, int kept,
                                              RowShared& s) {
  __syncthreads();
  for (int i = threadIdx.x; i < kept; i += kRowThreads) {
    const float w = part.weight(logit_of(s.keys[i]));
    s.sums[i] = w >= f.min_p ? units_of(w) : 0;
  }
  __syncthreads();
  for (int own = threadIdx.x; own < kept; own += kRowThreads) {
    const int id = id_of(s.keys[own]);
    uint64_t before = 0;  // what tokens of lower ids weigh
    uint64_t total = 0;
    for (int i = 0; i < kept; ++i) {
      const uint64_t units = s.sums[i];
      total += units;
      if (id_of(s.keys[i]) < id) before += units;
    }
    const uint64_t target = draw_target(f.uniform, total);
    if (before <= target && target < before + s.sums[own]) s.index = id;
  }
  __syncthreads();
  return s.index;
}

/// From all tokens of key >= least, in rounds: the part of the row in which the draw ends, the
/// warp's share of it, the share of that
/// share, once more, then four tokens, then one. With `weighed` the
/// first round's sums are in s.warp_draws. The token in the block whose part holds it, -1 in the
/// others.
template <bool kCluster>
__device__ __forceinline__ int draw_from_row(const Part<kCluster>& part, const Filters& f,
                                             uint64_t least, bool weighed, RowShared& s,
                                             const Team<kCluster>& team) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const auto units_at = [&](float v, int i) -> uint64_t {
    const float w = part.weight(v);
    return units_of((w >= f.min_p) & part.reaches(v, i, least) ? w : 0.0F);
  };
  const auto units = [&](const float4& v, int i) {
    return units_at(v.x, i) + units_at(v.y, i + 1) + units_at(v.z, i + 2) + units_at(v.w, i + 3);
  };
  Range range{0, part.count};
  uint64_t target = 0;
  for (int round = 0; round < 3; ++round) {
    if (round > 0 || !weighed) {
      uint64_t sum = 0;
      for_each_four(part, warp_share(range, warp), Order::kForward,
                    [&](const float4& v, int i) { sum += units(v, i); });
      sum = warp_inclusive(sum);
      __syncthreads();
      if (lane == 31) s.warp_draws[warp] = sum;
    }
    __syncthreads();
    if (round == 0) {
      uint64_t mine = 0;
      for (int w = 0; w < kRowWarps; ++w) mine += s.warp_draws[w];
      team.share(s.part_draws, mine);
      team.sync();
      uint64_t total = 0;
      for (int b = 0; b < team.size; ++b) total += s.part_draws[b];
      target = draw_target(f.uniform, total);
      if (choose(s.part_draws, team.size, target) != team.rank) return -1;
    }
    range = warp_share(range, choose(s.warp_draws, kRowWarps, target));
  }
  if (warp == 0) {
    bool found = false;
    for (int first = range.begin; first < range.end && !found; first += 4 * 32) {
      const int i = first + 4 * lane;
      const float4 v = part.four(i < range.end ? i : first, range.end);
      const uint64_t own = i < range.end ? units(v, i) : 0;
      const uint64_t sum = warp_inclusive(own);
      const uint64_t before = sum - own;
      if (before <= target && target < sum) {
        uint64_t rest = target - before;
        int at = 0;
        for (const float x : {v.x, v.y, v.z}) {
          const uint64_t one = units_at(x, i + at);
          if (one > rest) break;
          rest -= one;
          ++at;
        }
        s.index = part.first + i + at;
      }
      const uint64_t all = __shfl_sync(0xffffffffU, sum, 31);
      found = target < all;
      target -= all;
    }
  }
  __syncthreads();
  return s.index;
}

}  // namespace treadle::cuda
