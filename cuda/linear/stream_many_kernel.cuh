// The streaming product (stream_kernel.cuh) of up to 192 tokens, for narrow layers (sm_90a). W's
// rows are the rows of the tensor cores' products and the tokens their columns. Two threads keep
// rings of stages filled by the copy engine, one W and one x, and two warpgroups multiply 64 rows
// each.
//
// With so many tokens x is more than W, and L2 could not feed all multiprocessors with it. So the
// two thread blocks of a cluster have the same columns of x and different rows of W, and each loads
// half of the tokens for both.
//
// W's ring is filled while the kernels ahead are still running; only x waits for them.
#pragma once

#include "common/cluster.cuh"
#include "common/mbarrier.cuh"
#include "common/ptx.cuh"
#include "common/wgmma.cuh"
#include "linear/stream_many_exchange.cuh"
#include "linear/stream_many_plan.h"
#include "linear/stream_store.cuh"

namespace treadle::cuda::stream::many {

constexpr int kCluster = 2;
constexpr int kWarps = 8;
constexpr int kConsumers = 32 * kWarps;
constexpr int kThreads = kConsumers + 128;  // a warpgroup for the loads: registers move by these

struct Args {
  Output out;
  Plan plan;
  Parts parts;
  int box;  // tokens of x that each thread block loads for both
};

/// Sizes of a kernel.
template <int kTokens_, int kWStages_, int kXStages_, int kSplit_>
struct Sizes {
  static constexpr int kTokens = kTokens_;
  static constexpr int kWStages = kWStages_;
  static constexpr int kXStages = kXStages_;
  static constexpr int kSplit = kSplit_;
  static constexpr int kVectors = kTokens / 8;
  static_assert(kRows * kTokens <= kMostSums);  // or an exchange leaves its room
};

/// Shared memory: stages of W [128][64] and of x [kTokens][64] in lines of 128 bytes with the copy
/// engine's swizzle, and for each stage barriers that say it is full and it is done with (x's in
/// both thread blocks).
template <class S>
struct Layout {
  static constexpr int kWBytes = kRows * 128;
  static constexpr int kXBytes = S::kTokens * 128;
  static constexpr int kX = S::kWStages * kWBytes;
  static constexpr int kBarriers = kX + S::kXStages * kXBytes;
  static constexpr int kBytes = kBarriers + 2 * (S::kWStages + S::kXStages) * 8;
  static_assert(kBytes <= 227 << 10);

  uint32_t base;
  __device__ __forceinline__ uint32_t w(int stage) const { return base + stage * kWBytes; }
  __device__ __forceinline__ uint32_t x(int stage) const { return base + kX + stage * kXBytes; }
  __device__ __forceinline__ uint32_t w_full(int stage) const {
    return base + kBarriers + stage * 8;
  }
  __device__ __forceinline__ uint32_t w_done(int stage) const {
    return w_full(S::kWStages + stage);
  }
  __device__ __forceinline__ uint32_t x_full(int stage) const {
    return w_full(2 * S::kWStages + stage);
  }
  __device__ __forceinline__ uint32_t x_done(int stage) const {
    return x_full(S::kXStages + stage);
  }
};

/// What this thread block computes: the steps [k_begin, k_end) of a tile. The clusters of two tiles
/// have neighbouring numbers.
template <class S>
struct Work {
  int tile, part, k_begin, k_end;

  __device__ __forceinline__ explicit Work(const Plan& plan) {
    const auto block = static_cast<int>(blockIdx.x);
    const int cluster = block / kCluster;
    tile = cluster / S::kSplit * kCluster + block % kCluster;
    part = cluster % S::kSplit;
    k_begin = plan.k_blocks * part / S::kSplit;
    k_end = plan.k_blocks * (part + 1) / S::kSplit;
  }
};

/// One thread: keeps W up to kWStages steps ahead of the products.
template <class S>
__device__ __forceinline__ void produce_w(const Args& a, const CUtensorMap* map,
                                          const Layout<S>& layout) {
  const uint64_t policy = evict_first_policy();
  const Work<S> work(a.plan);
  Ring<S::kWStages> ring;
  for (int k = work.k_begin; k < work.k_end; ++k, ring.next()) {
    if (k - work.k_begin >= S::kWStages) {
      mbarrier_wait(layout.w_done(ring.stage), ring.parity ^ 1);
    }
    const uint32_t full = layout.w_full(ring.stage);
    mbarrier_expect(full, Layout<S>::kWBytes);
    tma_load(layout.w(ring.stage), map, k * kDepth, work.tile * kRows, full, policy);
  }
}

/// One thread: keeps x up to kXStages steps ahead of the products of both thread blocks.
template <class S>
__device__ __forceinline__ void produce_x(const Args& a, const CUtensorMap* map,
                                          const Layout<S>& layout) {
  constexpr uint16_t kBoth = 3;
  const uint64_t policy = evict_normal_policy();
  const Work<S> work(a.plan);
  const int rank = static_cast<int>(cluster_rank());
  Ring<S::kXStages> ring;
  for (int k = work.k_begin; k < work.k_end; ++k, ring.next()) {
    if (k - work.k_begin >= S::kXStages) {
      mbarrier_wait(layout.x_done(ring.stage), ring.parity ^ 1);
    }
    const uint32_t full = layout.x_full(ring.stage);
    mbarrier_expect(full, kCluster * a.box * 128);
    tma_load_multicast(layout.x(ring.stage) + rank * a.box * 128, map, k * kDepth, rank * a.box,
                       full, kBoth, policy);
  }
}

template <class T, class S>
__device__ __forceinline__ void consume(const Args& a, const Layout<S>& layout) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const Work<S> work(a.plan);
  Ring<S::kWStages> ring;
  Ring<S::kXStages> x_ring;
  float acc[S::kVectors][4];
  auto& flat = reinterpret_cast<float(&)[S::kTokens / 2]>(acc);
  const auto release = [&](int w_stage, int x_stage) {
    if (lane == 0) mbarrier_arrive(layout.w_done(w_stage));
    if (lane < kCluster) {
      mbarrier_arrive_cluster(layout.x_done(x_stage), static_cast<uint32_t>(lane));
    }
  };
  int w_before = 0;
  int x_before = 0;
  for (int k = work.k_begin; k < work.k_end; ++k) {
    mbarrier_wait(layout.w_full(ring.stage), ring.parity);
    mbarrier_wait(layout.x_full(x_ring.stage), x_ring.parity);
    const uint32_t w = layout.w(ring.stage) + warp / 4 * (64 * 128);
    const uint32_t x = layout.x(x_ring.stage);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kDepth / 16; ++i) {
      Wgmma<T, S::kTokens>::ss(flat, wgmma_descriptor(w + i * 32, 16, 1024),
                               wgmma_descriptor(x + i * 32, 16, 1024), k > work.k_begin || i > 0);
    }
    wgmma_commit();
    wgmma_wait<1>();
    if (k > work.k_begin) release(w_before, x_before);
    w_before = ring.stage;
    x_before = x_ring.stage;
    ring.next();
    x_ring.next();
  }
  wgmma_wait<0>();
  wgmma_hold(flat);
  release(w_before, x_before);
  const Exchange<T, S::kVectors, S::kSplit, kConsumers> exchange{a.out, a.parts, work.tile,
                                                                 work.tile * kRows + warp * 16};
  if (work.part == 0) exchange.template finish<0>(acc);
  if (work.part == 1) exchange.template finish<1>(acc);
  if constexpr (S::kSplit > 2) {
    if (work.part == 2) exchange.template finish<2>(acc);
  }
  if constexpr (S::kSplit > 3) {
    if (work.part == 3) exchange.template finish<3>(acc);
  }
  exchange.part();
}

template <class T, class S>
__global__ void __launch_bounds__(kThreads, 1)
    stream_many_kernel(const Args a, const __grid_constant__ CUtensorMap w_map,
                       const __grid_constant__ CUtensorMap x_map) {
  extern __shared__ __align__(1024) uint8_t shared[];
  const Layout<S> layout{shared_address(shared)};
  grid_dependency_launch();
  if (threadIdx.x == kConsumers) {
    tma_prefetch_map(&w_map);
    tma_prefetch_map(&x_map);
    for (int stage = 0; stage < S::kWStages; ++stage) {
      mbarrier_init(layout.w_full(stage), 1);
      mbarrier_init(layout.w_done(stage), kWarps);
    }
    for (int stage = 0; stage < S::kXStages; ++stage) {
      mbarrier_init(layout.x_full(stage), 1);
      mbarrier_init(layout.x_done(stage), kCluster * kWarps);
    }
    mbarrier_init_fence();
  }
  cluster_sync();
  if (threadIdx.x >= kConsumers) {
    registers_decrease<40>();
    if (threadIdx.x == kConsumers) {
      produce_w<S>(a, &w_map, layout);  // W is constant; all else is not
    } else if (threadIdx.x == kConsumers + 32) {
      grid_dependency_wait();
      produce_x<S>(a, &x_map, layout);
    }
    __syncwarp();
  } else {
    registers_increase<232>();
    grid_dependency_wait();
    consume<T, S>(a, layout);
  }
  cluster_sync();  // until then a thread block's partner arrives at its barriers
}

}  // namespace treadle::cuda::stream::many
