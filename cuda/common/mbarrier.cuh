// Barriers in shared memory, copies by the copy engine that complete on them, and named barriers
// (sm_90).
#pragma once

#include <cstdint>

#include <cuda.h>

#include "common/ptx.cuh"

namespace treadle::cuda {

__device__ __forceinline__ void mbarrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals)
               : "memory");
}
/// Makes initialised barriers visible to the copy engine; follow with a block barrier.
__device__ __forceinline__ void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}
__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}
/// Arrives at the barrier at the same place in thread block `rank` of the cluster.
__device__ __forceinline__ void mbarrier_arrive_cluster(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}\n" ::"r"(barrier),
      "r"(rank)
      : "memory");
}
/// Arrives and announces `bytes` that copies will bring.
__device__ __forceinline__ void mbarrier_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes)
               : "memory");
}
/// Waits for the end of the phase of this parity. A fresh barrier is in phase 0, and the phase
/// before it (parity 1) counts as over.
__device__ __forceinline__ void mbarrier_wait(uint32_t barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again_%=:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra over_%=;\n"
      "bra again_%=;\n"
      "over_%=:\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

/// `bytes` contiguous bytes to shared memory; completes on `barrier`. All multiples of 16.
__device__ __forceinline__ void bulk_load(uint32_t dst, const void* src, int bytes,
                                          uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::
          "r"(dst),
      "l"(src), "r"(bytes), "r"(barrier)
      : "memory");
}

/// Position in a ring of stages, and the parity of the phase that its barriers are in.
template <int kStages>
struct Ring {
  int stage = 0;
  int parity = 0;
  __device__ __forceinline__ void next() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

/// One box of a 2-D map to shared memory (aligned to 1024 bytes); completes on `barrier`.
__device__ __forceinline__ void tma_load(uint32_t dst, const CUtensorMap* map, int column, int row,
                                         uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3}], [%4];\n" ::"r"(dst),
      "l"(map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}
/// The same for data that is read once: it leaves L2 before anything else.
__device__ __forceinline__ void tma_load(uint32_t dst, const CUtensorMap* map, int column, int row,
                                         uint32_t barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;\n" ::"r"(dst),
      "l"(map), "r"(column), "r"(row), "r"(barrier), "l"(policy)
      : "memory");
}
/// A box of a 4-D map that starts at 0 in the two middle dimensions.
__device__ __forceinline__ void tma_load_4d(uint32_t dst, const CUtensorMap* map, int first,
                                            int last, uint32_t barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%2, %3, %3, %4}], [%5], %6;\n" ::"r"(dst),
      "l"(map), "r"(first), "r"(0), "r"(last), "r"(barrier), "l"(policy)
      : "memory");
}
/// A box of a 2-D map to the same place in the thread blocks of the cluster that `mask` names;
/// completes on the barrier at the same place in each.
__device__ __forceinline__ void tma_load_multicast(uint32_t dst, const CUtensorMap* map, int column,
                                                   int row, uint32_t barrier, uint16_t mask,
                                                   uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster.L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5, %6;\n" ::"r"(dst),
      "l"(map), "r"(column), "r"(row), "r"(barrier), "h"(mask), "l"(policy)
      : "memory");
}
/// The same of a 4-D map, from 0 on in the two middle dimensions.
__device__ __forceinline__ void tma_load_4d_multicast(uint32_t dst, const CUtensorMap* map,
                                                      int first, int last, uint32_t barrier,
                                                      uint16_t mask, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster.L2::cache_hint [%0], [%1, {%2, %3, %3, %4}], [%5], %6, %7;\n" ::"r"(dst),
      "l"(map), "r"(first), "r"(0), "r"(last), "r"(barrier), "h"(mask), "l"(policy)
      : "memory");
}
__device__ __forceinline__ void tma_prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];\n" ::"l"(map) : "memory");
}
/// Orders this thread's ordinary shared-memory writes before later accesses of the copy engine and
/// the matrix unit.
__device__ __forceinline__ void async_proxy_fence() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

/// Barrier `id` (1..15) of `threads` threads: wait for all, or say that one is there.
__device__ __forceinline__ void named_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

template <int kRegisters>
__device__ __forceinline__ void registers_increase() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void registers_decrease() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

}  // namespace treadle::cuda
