// How the thread blocks that share a tile of a streamed product, each with a part of K, put their
// sums together: each leaves its sums in memory, waits for the others, and adds up every split-th
// group of 8 tokens in the order of K.
#pragma once

#include "common/mbarrier.cuh"
#include "common/ptx.cuh"
#include "linear/stream_plan.h"

namespace treadle::cuda::stream {

/// A warpgroup thread's sums of kBlocks x 64 rows of W and kVectors x 8 tokens, of which this
/// thread block adds up kOwn or fewer groups of 8 tokens for each 64 rows, from its own number on.
/// All thread blocks of a tile run at once, because none waits for another before this and the grid
/// fits the GPU.
template <int kBlocks, int kVectors, int kOwn, int kConsumers>
class Exchange {
 public:
  __device__ __forceinline__ Exchange(const Parts& parts, int tile, int part, int split)
      : parts_(reinterpret_cast<float4*>(parts.sums) +
               size_t(tile) * split * kBlocks * kVectors * kConsumers + threadIdx.x),
        counter_(parts.counters + tile),
        part_(part),
        split_(split) {}

  __device__ __forceinline__ void leave_sums(const float (&acc)[kVectors][4], int block) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      *place(part_, block, i) = make_float4(acc[i][0], acc[i][1], acc[i][2], acc[i][3]);
    }
  }
  /// Waits until all have left their sums.
  __device__ __forceinline__ void meet() const {
    named_sync(1, kConsumers);
    if (threadIdx.x == 0) {
      __threadfence();
      atomicAdd(counter_, 1);
      wait_for_count(counter_, split_);
    }
    named_sync(1, kConsumers);
  }
  __device__ __forceinline__ void add_up(float (&sums)[kOwn][4], int block) const {
    constexpr int kParts = kOwn < 8 ? 8 / kOwn : 1;  // whose loads wait for memory together
#pragma unroll
    for (int i = 0; i < kOwn; ++i) sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = 0.0F;
    for (int begin = 0; begin < split_; begin += kParts) {
      float4 v[kParts][kOwn];
#pragma unroll
      for (int j = 0; j < kParts; ++j) {
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
          const int vector = part_ + i * split_;
          v[j][i] = begin + j < split_ && vector < kVectors
                        ? __ldcg(place(begin + j, block, vector))
                        : make_float4(0.0F, 0.0F, 0.0F, 0.0F);
        }
      }
#pragma unroll
      for (int j = 0; j < kParts; ++j) {
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
          sums[i][0] += v[j][i].x;
          sums[i][1] += v[j][i].y;
          sums[i][2] += v[j][i].z;
          sums[i][3] += v[j][i].w;
        }
      }
    }
  }
  /// The counter says first who has left sums, then who has read them; the last to have read resets
  /// it.
  __device__ __forceinline__ void part() const {
    named_sync(1, kConsumers);
    if (threadIdx.x == 0 && atomicAdd(counter_, 1) == 2 * split_ - 1) *counter_ = 0;
  }

 private:
  __device__ __forceinline__ float4* place(int part, int block, int vector) const {
    return parts_ + ((part * kBlocks + block) * kVectors + vector) * kConsumers;
  }

  float4* parts_;
  int* counter_;
  int part_;
  int split_;
};

}  // namespace treadle::cuda::stream
