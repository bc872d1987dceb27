// Thread block clusters (sm_90): barriers, shared memory of the other thread blocks, copies to
// several of them.
#pragma once

#include <cstdint>

#include <cuda.h>

namespace treadle::cuda {

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
  return rank;
}
/// Of all threads of the cluster; what was written to shared memory before is visible after.
__device__ __forceinline__ void cluster_sync() {
  asm volatile(
      "barrier.cluster.arrive.release;\n"
      "barrier.cluster.wait.acquire;\n" ::
          : "memory");
}
/// Where the thread block `rank` has what this one has at `address`.
__device__ __forceinline__ uint32_t cluster_address(uint32_t address, uint32_t rank) {
  uint32_t mapped;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
}
__device__ __forceinline__ float4 cluster_load(uint32_t mapped) {
  float4 v;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];\n"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(mapped)
               : "memory");
  return v;
}
__device__ __forceinline__ void cluster_arrive(uint32_t mapped_barrier) {
  asm volatile(
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];\n" ::"r"(mapped_barrier)
      : "memory");
}
/// One box of a 2-D map to the same place in every thread block of `mask`; completes on the barrier
/// that each of them has at `barrier`.
__device__ __forceinline__ void tma_load_multicast(uint32_t dst, const CUtensorMap* map, int column,
                                                   int row, uint32_t barrier, uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;\n" ::"r"(dst),
      "l"(map), "r"(column), "r"(row), "r"(barrier), "h"(mask)
      : "memory");
}

}  // namespace treadle::cuda
