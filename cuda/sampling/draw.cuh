// The draw: the first kept token, by id, at which the running weight exceeds uniform * total.
#pragma once

#include "sampling/select.cuh"

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

/// How many of the first `count` keys of s.keys (best first) top_p keeps. `total`: units of the
/// tokens that top_p is a share of, 0 for those of the keys. -1 when it reaches past the keys. For
/// one block.
template <bool kShared>
__device__ __forceinline__ int kept_keys(const Part<kShared>& part, float top_p, int count,
                                         uint64_t total, RowShared& s) {
  if (top_p >= 1.0F) return count;
  running_sums(count, s, [&](int i) { return units_of(part.weight(logit_of(s.keys[i]))); });
  const int last =
      first_reaching(count, target_of(top_p, total > 0 ? total : s.sums[count - 1]), s);
  return last < count ? last + 1 : -1;
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
/// warp's share of it, the share of that share, then four tokens, then one. The token in the block
/// whose part holds it, -1 in the others.
template <bool kCluster>
__device__ __forceinline__ int draw_from_row(const Part<kCluster>& part, const Filters& f,
                                             uint64_t least, RowShared& s,
                                             const Team<kCluster>& team) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const auto units_at = [&](float v, int i) -> uint64_t {
    const float w = part.weight(v);
    return w >= f.min_p && part.reaches(v, i, least) ? units_of(w) : 0;
  };
  const auto units = [&](const float4& v, int i) {
    return units_at(v.x, i) + units_at(v.y, i + 1) + units_at(v.z, i + 2) + units_at(v.w, i + 3);
  };
  int begin = 0;
  int end = part.count;
  uint64_t target = 0;
  for (int round = 0; round < 2; ++round) {
    const int share = ((end - begin + kRowWarps - 1) / kRowWarps + 3) / 4 * 4;
    const int from = min(begin + warp * share, end);
    uint64_t sum = 0;
    for_each_four(part, from, min(from + share, end), lane, 32,
                  [&](const float4& v, int i) { sum += units(v, i); });
    sum = warp_inclusive(sum);
    __syncthreads();
    if (lane == 31) s.warp_u64[warp] = sum;
    __syncthreads();
    if (round == 0) {
      uint64_t mine = 0;
      for (int w = 0; w < kRowWarps; ++w) mine += s.warp_u64[w];
      team.share(s.part_sums, mine);
      team.sync();
      uint64_t total = 0;
      for (int b = 0; b < team.size; ++b) total += s.part_sums[b];
      target = draw_target(f.uniform, total);
      int chosen = 0;
      while (s.part_sums[chosen] <= target) target -= s.part_sums[chosen++];
      if (chosen != team.rank) return -1;
    }
    int chosen = 0;
    while (chosen < kRowWarps - 1 && s.warp_u64[chosen] <= target) target -= s.warp_u64[chosen++];
    begin = min(begin + chosen * share, end);
    end = min(begin + share, end);
  }
  if (warp == 0) {
    bool found = false;
    for (int first = begin; first < end && !found; first += 4 * 32) {
      const int i = first + 4 * lane;
      const float4 v = part.four(i < end ? i : first, end);
      const uint64_t own = i < end ? units(v, i) : 0;
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
