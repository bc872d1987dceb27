// The kernel of stream_linear.h (sm_90a). W's rows are the rows of the tensor cores' products and
// the tokens their columns, so that few tokens waste little. Two threads keep rings of stages
// filled by the copy engine, one W and one x, and two warpgroups multiply 64 rows each.
//
// W's ring is filled while the kernels ahead are still running; only x waits for them.
#pragma once

#include "common/mbarrier.cuh"
#include "common/ptx.cuh"
#include "common/wgmma.cuh"
#include "linear/stream_exchange.cuh"
#include "linear/stream_plan.h"
#include "linear/stream_store.cuh"

namespace treadle::cuda::stream {

constexpr int kConsumerWarps = 8;
constexpr int kConsumers = 32 * kConsumerWarps;
constexpr int kThreads = kConsumers + 64;

struct Args {
  Output out;
  int x_bytes;  // of a step, of the tokens that there are
  Plan plan;
  Parts parts;
};

/// Shared memory: stages of W [128][64] and of x [kTokens][64] in lines of 128 bytes with the copy
/// engine's swizzle, a barrier for each stage that is full and for each step that is done.
template <int kTokens, int kWStages, int kXStages>
struct Layout {
  static_assert(kXStages <= kWStages);
  static constexpr int kWBytes = kRows * 128;
  static constexpr int kXBytes = kTokens * 128;
  static constexpr int kX = kWStages * kWBytes;
  static constexpr int kBarriers = kX + kXStages * kXBytes;
  static constexpr int kBytes = kBarriers + (2 * kWStages + kXStages) * 8;

  uint32_t base;
  __device__ __forceinline__ uint32_t w(int stage) const { return base + stage * kWBytes; }
  __device__ __forceinline__ uint32_t x(int stage) const { return base + kX + stage * kXBytes; }
  __device__ __forceinline__ uint32_t w_full(int stage) const {
    return base + kBarriers + stage * 8;
  }
  __device__ __forceinline__ uint32_t done(int stage) const { return w_full(kWStages + stage); }
  __device__ __forceinline__ uint32_t x_full(int stage) const {
    return w_full(2 * kWStages + stage);
  }
};

/// What this thread block computes: tiles [tile, tile_end), of each the blocks [k_begin, k_end).
struct Work {
  int tile, tile_end, k_begin, k_end;

  __device__ __forceinline__ explicit Work(const Plan& plan) {
    const auto block = static_cast<int>(blockIdx.x);
    if (plan.split == 1) {
      tile = plan.tiles * block / plan.blocks;
      tile_end = plan.tiles * (block + 1) / plan.blocks;
    } else {
      tile = block / plan.split;
      tile_end = tile + 1;
    }
    const int part = block % plan.split;
    k_begin = plan.k_blocks * part / plan.split;
    k_end = plan.k_blocks * (part + 1) / plan.split;
  }
  __device__ __forceinline__ int steps() const { return (tile_end - tile) * (k_end - k_begin); }
};

/// The steps of a thread block, one after the other.
struct Step {
  int tile, k, k_begin, k_end;

  __device__ __forceinline__ explicit Step(const Work& work)
      : tile(work.tile), k(work.k_begin), k_begin(work.k_begin), k_end(work.k_end) {}
  __device__ __forceinline__ void next() {
    if (++k == k_end) {
      k = k_begin;
      ++tile;
    }
  }
};

/// One thread: keeps W up to kWStages steps ahead of the products.
template <class L, int kWStages, bool kGated>
__device__ __forceinline__ void produce_w(const Args& a, const CUtensorMap* map, const L& layout) {
  const uint64_t policy = evict_first_policy();
  const Work work(a.plan);
  Step step(work);
  Ring<kWStages> ring;
  for (int i = 0; i < work.steps(); ++i, step.next(), ring.next()) {
    if (i >= kWStages) mbarrier_wait(layout.done(ring.stage), ring.parity ^ 1);
    const uint32_t full = layout.w_full(ring.stage);
    mbarrier_expect(full, L::kWBytes);
    if constexpr (kGated) {
      tma_load_4d(layout.w(ring.stage), map, step.k * kDepth, step.tile * (kRows / 16), full,
                  policy);
    } else {
      tma_load(layout.w(ring.stage), map, step.k * kDepth, step.tile * kRows, full, policy);
    }
  }
}

/// One thread: keeps x up to kXStages steps ahead of the products.
template <class L, int kWStages, int kXStages>
__device__ __forceinline__ void produce_x(const Args& a, const CUtensorMap* map, const L& layout) {
  const Work work(a.plan);
  Step step(work);
  Ring<kXStages> ring;
  Ring<kWStages> done;
  for (int i = 0; i < work.steps(); ++i, step.next(), ring.next()) {
    if (i >= kXStages) {
      mbarrier_wait(layout.done(done.stage), done.parity);
      done.next();
    }
    mbarrier_expect(layout.x_full(ring.stage), a.x_bytes);
    tma_load(layout.x(ring.stage), map, step.k * kDepth, 0, layout.x_full(ring.stage));
  }
}

template <class T, class Out, int kTokens, int kWStages, int kXStages, bool kGated>
__device__ __forceinline__ void consume(const Args& a,
                                        const Layout<kTokens, kWStages, kXStages>& layout) {
  const int warp = threadIdx.x / 32;
  const Work work(a.plan);
  Ring<kWStages> ring;
  Ring<kXStages> x_ring;
  constexpr int kVectors = kTokens / 8;
  float acc[kVectors][4];
  auto& flat = reinterpret_cast<float(&)[kTokens / 2]>(acc);
  const auto done = [&](int stage) {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(layout.done(stage));
  };
  for (int tile = work.tile; tile < work.tile_end; ++tile) {
    int before = 0;
    for (int k = work.k_begin; k < work.k_end; ++k) {
      mbarrier_wait(layout.w_full(ring.stage), ring.parity);
      mbarrier_wait(layout.x_full(x_ring.stage), x_ring.parity);
      const uint32_t w = layout.w(ring.stage) + warp / 4 * (64 * 128);
      const uint32_t x = layout.x(x_ring.stage);
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < kDepth / 16; ++i) {
        Wgmma<T, kTokens>::ss(flat, wgmma_descriptor(w + i * 32, 16, 1024),
                              wgmma_descriptor(x + i * 32, 16, 1024), k > work.k_begin || i > 0);
      }
      wgmma_commit();
      wgmma_wait<1>();
      if (k > work.k_begin) done(before);
      before = ring.stage;
      ring.next();
      x_ring.next();
    }
    wgmma_wait<0>();
    wgmma_hold(flat);
    done(before);
    const int row = tile * kRows + warp * 16;
    if (a.plan.split == 1) {
      store<T, Out, kGated>(a.out, acc, row, 0, 1);
    } else {
      const int part = static_cast<int>(blockIdx.x) % a.plan.split;
      float sums[kVectors / 2][4];
      const Exchange<1, kVectors, kVectors / 2, kConsumers> exchange(a.parts, tile, part,
                                                                     a.plan.split);
      exchange.leave_sums(acc, 0);
      exchange.meet();
      exchange.add_up(sums, 0);
      exchange.part();
      store<T, Out, kGated>(a.out, sums, row, part, a.plan.split);
    }
  }
}

template <class T, class Out, int kTokens, int kWStages, int kXStages, bool kGated>
__global__ void __launch_bounds__(kThreads, 1)
    stream_linear_kernel(const Args a, const __grid_constant__ CUtensorMap w_map,
                         const __grid_constant__ CUtensorMap x_map) {
  using L = Layout<kTokens, kWStages, kXStages>;
  extern __shared__ __align__(1024) uint8_t shared[];
  const L layout{shared_address(shared)};
  grid_dependency_launch();
  if (threadIdx.x == kConsumers) {
    tma_prefetch_map(&w_map);
    tma_prefetch_map(&x_map);
    for (int stage = 0; stage < kWStages; ++stage) {
      mbarrier_init(layout.w_full(stage), 1);
      mbarrier_init(layout.done(stage), kConsumerWarps);
    }
    for (int stage = 0; stage < kXStages; ++stage) mbarrier_init(layout.x_full(stage), 1);
    mbarrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x == kConsumers) {
    produce_w<L, kWStages, kGated>(a, &w_map, layout);  // W is constant; all else is not
    return;
  }
  grid_dependency_wait();
  if (threadIdx.x == kConsumers + 32) {
    produce_x<L, kWStages, kXStages>(a, &x_map, layout);
  } else if (threadIdx.x < kConsumers) {
    consume<T, Out, kTokens, kWStages, kXStages, kGated>(a, layout);
  }
}

}  // namespace treadle::cuda::stream
