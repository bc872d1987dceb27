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

/// From the first `count` keys of s.keys (best first). `total`: weight of the tokens that top_p is
/// a share of, 0 for that of the keys. -1 when top_p may reach past the keys and `all` is false.
__device__ inline int draw_from_keys(const Row& row, const Filters& f, int count, double total,
                                     bool all, RowShared& s) {
  const auto weight = [&](int i) { return weight_of(row, logit_of(s.keys[i])); };
  int kept = count;
  if (f.top_p < 1.0F) {
    running_sums(count, s, [&](int i) { return units_of(weight(i)); });
    const uint64_t sum = s.sums[count - 1];
    const int last = first_reaching(
        count, target_of(f.top_p, total > 0.0 ? total : static_cast<double>(sum)), s);
    if (last >= count && !all) return -1;
    kept = min(last + 1, count);
  }
  if (f.min_p > 0.0F) {
    if (threadIdx.x == 0) s.counter = kept;
    __syncthreads();
    for (int i = threadIdx.x; i < kept; i += kRowThreads) {
      if (weight(i) < f.min_p) atomicMin(&s.counter, i);
    }
    __syncthreads();
    kept = max(s.counter, 1);
  }
  // By id: the halves of a key change places, so that the lowest id is the largest.
  __syncthreads();
  for (int i = threadIdx.x; i < kept; i += kRowThreads) {
    s.keys[i] = (s.keys[i] << 32) | (s.keys[i] >> 32);
  }
  sort_descending(s.keys, pad_keys(s, kept));
  running_sums(kept, s, [&](int i) { return units_of(weight_of(row, logit_of(s.keys[i] << 32))); });
  const uint64_t target = draw_target(f.uniform, s.sums[kept - 1]);
  const int drawn = min(first_reaching(kept, target + 1, s), kept - 1);
  const int token = id_of(s.keys[drawn] >> 32);
  __syncthreads();
  return token;
}

/// From all tokens of key >= least, in three rounds: the warp's share of the row in which the draw
/// ends, the share of that share, then one by one.
__device__ inline int draw_from_row(const Row& row, const Filters& f, uint64_t least,
                                    RowShared& s) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const auto units = [&](float v, int i) -> uint64_t {
    if (least != 0 && rank_key(v, i) < least) return 0;
    const float w = weight_of(row, v);
    return w >= f.min_p ? units_of(w) : 0;
  };
  int begin = 0;
  int end = row.vocab;
  uint64_t target = 0;
  for (int round = 0; round < 2; ++round) {
    const int share = ((end - begin + kRowWarps - 1) / kRowWarps + 3) / 4 * 4;
    const int from = min(begin + warp * share, end);
    uint64_t sum = 0;
    for_each_logit(row, from, min(from + share, end), lane, 32,
                   [&](float v, int i) { sum += units(v, i); });
    sum = warp_inclusive(sum);
    __syncthreads();
    if (lane == 31) s.warp_u64[warp] = sum;
    __syncthreads();
    if (round == 0) {
      uint64_t total = 0;
      for (int w = 0; w < kRowWarps; ++w) total += s.warp_u64[w];
      target = draw_target(f.uniform, total);
    }
    int chosen = 0;
    while (chosen < kRowWarps - 1 && s.warp_u64[chosen] <= target) target -= s.warp_u64[chosen++];
    begin = min(begin + chosen * share, end);
    end = min(begin + share, end);
  }
  if (warp == 0) {
    int token = -1;
    for (int first = begin; first < end && token < 0; first += 32) {
      const int i = first + lane;
      const uint64_t sum = warp_inclusive(i < end ? units(row.x[i], i) : 0);
      const uint32_t past = __ballot_sync(0xffffffffU, sum > target);
      if (past != 0) token = first + __ffs(static_cast<int>(past)) - 1;
      target -= __shfl_sync(0xffffffffU, sum, 31);
    }
    if (lane == 0) s.found_i32[2] = token;
  }
  __syncthreads();
  return s.found_i32[2];
}

}  // namespace treadle::cuda
