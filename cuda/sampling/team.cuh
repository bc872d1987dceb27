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
    if constexpr (kCluster) asm volatile("barrier.cluster.arrive.release;\n" ::: "memory");
  }
  __device__ __forceinline__ void wait_for_all() const {
    if constexpr (kCluster) asm volatile("barrier.cluster.wait.acquire;\n" ::: "memory");
  }

  /// What block `of` has in its shared memory where this one has `p`. Blocks that may still be
  /// looked at must not end: a sync() has to follow.
  template <class T>
  __device__ __forceinline__ T* at(T* p, int of) const {
    if constexpr (!kCluster) return p;
    uint64_t mapped;
    asm("mapa.u64 %0, %1, %2;\n"
        : "=l"(mapped)
        : "l"(reinterpret_cast<uint64_t>(p)), "r"(static_cast<uint32_t>(of)));
    return reinterpret_cast<T*>(mapped);
  }

  /// array[rank] = value in every block, there to be read after the next sync(). All threads of the
  /// block call this with the same value.
  template <class T>
  __device__ __forceinline__ void share(T* array, const T& value) const {
    if (static_cast<int>(threadIdx.x) < size) *at(array + rank, threadIdx.x) = value;
  }
};

}  // namespace treadle::cuda
