// The thread blocks that share a row: a cluster where the GPU has clusters, else one block.
#pragma once

#include "common/cluster.cuh"

namespace treadle::cuda {

constexpr int kMaxTeam = 8;  // what every GPU with clusters can schedule

template <bool kCluster>
struct Team {
  int rank = 0;
  int size = 1;

  /// A barrier of all threads of the team.
  __device__ __forceinline__ void sync() const {
    if constexpr (kCluster) {
      cluster_sync();
    } else {
      __syncthreads();
    }
  }

  /// Each block calls ready() when others may write to its shared memory, and wait_for_all() before
  /// it writes to theirs.
  __device__ __forceinline__ void ready() const {
    if constexpr (kCluster) cluster_arrive();
  }
  __device__ __forceinline__ void wait_for_all() const {
    if constexpr (kCluster) cluster_wait();
  }

  /// What block `of` has in its shared memory where this one has `p`. Blocks that may still be
  /// looked at must not end: a sync() has to follow.
  template <class T>
  __device__ __forceinline__ T* at(T* p, int of) const {
    if constexpr (kCluster) return in_block(p, of);
    return p;
  }

  /// array[rank] = value in every block, there to be read after the next sync(). All threads of the
  /// block call this with the same value.
  template <class T>
  __device__ __forceinline__ void share(T* array, const T& value) const {
    if (static_cast<int>(threadIdx.x) < size) *at(array + rank, threadIdx.x) = value;
  }

  /// *p = value in every block, there to be read after the next sync(). One thread calls this.
  template <class T>
  __device__ __forceinline__ void tell(T* p, const T& value) const {
    for (int b = 0; b < size; ++b) *at(p, b) = value;
  }
};

}  // namespace treadle::cuda
