// Thread block clusters (sm_90).
#pragma once

#include <cstdint>

namespace treadle::cuda {

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
  return rank;
}
/// The two halves of cluster_sync().
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release;\n" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire;\n" ::: "memory");
}
/// Of all threads of the cluster; what was written to shared memory before is visible after.
__device__ __forceinline__ void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}
/// What block `rank` of the cluster has in its shared memory where this one has `p`.
template <class T>
__device__ __forceinline__ T* in_block(T* p, int rank) {
  uint64_t mapped;
  asm("mapa.u64 %0, %1, %2;\n"
      : "=l"(mapped)
      : "l"(reinterpret_cast<uint64_t>(p)), "r"(static_cast<uint32_t>(rank)));
  return reinterpret_cast<T*>(mapped);
}
/// The address of the same place in thread block `rank` of the cluster.
__device__ __forceinline__ uint32_t mapped_address(uint32_t address, uint32_t rank) {
  uint32_t mapped;
  asm("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
}
/// Writes to an address that mapped_address() gave.
__device__ __forceinline__ void store_cluster(uint32_t address, float4 v) {
  asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};\n" ::"r"(address), "f"(v.x),
               "f"(v.y), "f"(v.z), "f"(v.w)
               : "memory");
}

}  // namespace treadle::cuda
