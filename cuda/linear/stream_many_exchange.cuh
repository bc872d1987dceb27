// How the thread blocks that share a tile of stream_many_kernel.cuh, each with a part of K, put
// their sums together and store them: as in stream_exchange.cuh, but what a thread block adds up
// itself stays in its registers, and what y has is on its way meanwhile.
#pragma once

#include "common/mbarrier.cuh"
#include "common/ptx.cuh"
#include "linear/stream_plan.h"
#include "linear/stream_store.cuh"

namespace treadle::cuda::stream::many {

/// A warpgroup thread's sums of 16 rows of W a warp, from `row` on, and kVectors x 8 tokens. All
/// thread blocks of a tile run at once, because none waits for another before this and the grid
/// fits the GPU.
template <class T, int kVectors, int kSplit, int kConsumers>
struct Exchange {
  // Even, as chunks are stored by fours; a last one may be no tokens.
  static constexpr int kOwn = (kVectors + 2 * kSplit - 1) / (2 * kSplit) * 2;

  const Output& out;
  const Parts& parts;
  int tile;
  int row;

  /// Adds up and stores every kSplit-th group of 8 tokens from the thread block's part of K on, in
  /// the order of K. A constant part lets all sums keep their registers.
  template <int kPart>
  __device__ __forceinline__ void finish(const float (&acc)[kVectors][4]) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (i % kSplit != kPart) {
        *place(kPart, i) = make_float4(acc[i][0], acc[i][1], acc[i][2], acc[i][3]);
      }
    }
    Chunks<kOwn> old;
    load_chunks<T>(out, row, kPart, kSplit, old);
    meet();
    float4 others[kSplit][kOwn];
#pragma unroll
    for (int p = 0; p < kSplit; ++p) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        const int vector = i * kSplit + kPart;
        if (p != kPart && vector < kVectors) others[p][i] = __ldcg(place(p, vector));
      }
    }
    float sums[kOwn][4] = {};
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int vector = i * kSplit + kPart;
      if (vector >= kVectors) continue;
#pragma unroll
      for (int p = 0; p < kSplit; ++p) {
        const float(&own)[4] = acc[vector];
        const float4 v = p == kPart ? make_float4(own[0], own[1], own[2], own[3]) : others[p][i];
        sums[i][0] += v.x;
        sums[i][1] += v.y;
        sums[i][2] += v.z;
        sums[i][3] += v.w;
      }
    }
    store_chunks<T, T, false>(out, sums, row, kPart, kSplit, &old);
  }
  /// The counter says first who has left sums, then who has read them; the last to have read resets
  /// it.
  __device__ __forceinline__ void part() const {
    named_sync(1, kConsumers);
    if (threadIdx.x == 0 && atomicAdd(parts.counters + tile, 1) == 2 * kSplit - 1) {
      parts.counters[tile] = 0;
    }
  }

 private:
  /// Waits until all have left their sums.
  __device__ __forceinline__ void meet() const {
    int* counter = parts.counters + tile;
    named_sync(1, kConsumers);
    if (threadIdx.x == 0) {
      __threadfence();
      atomicAdd(counter, 1);
      wait_for_count(counter, kSplit);
    }
    named_sync(1, kConsumers);
  }
  __device__ __forceinline__ float4* place(int part, int vector) const {
    return reinterpret_cast<float4*>(parts.sums) +
           ((size_t(tile) * kSplit + part) * kVectors + vector) * kConsumers + threadIdx.x;
  }
};

}  // namespace treadle::cuda::stream::many
