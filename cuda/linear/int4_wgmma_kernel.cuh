// The kernel of int4_wgmma.h (sm_90a): the streaming product (stream_kernel.cuh) with W of 4 bits.
// W's rows are the rows of the tensor cores' products and the tokens their columns. Two threads
// keep rings of stages filled by the copy engine, one W with its scales and one x. Two warpgroups
// turn W into fragments in registers while their last products are under way.
//
// W's ring is filled while the kernels ahead are still running; only x waits for them.
#pragma once

#include "common/cluster.cuh"
#include "common/mbarrier.cuh"
#include "common/ptx.cuh"
#include "common/wgmma.cuh"
#include "linear/int4_exchange.cuh"
#include "linear/int4_fragments.cuh"
#include "linear/int4_wgmma_plan.h"

namespace treadle::cuda::int4::wgmma {

constexpr int kProducers = 128;  // two threads of these, but registers are given by warpgroups
constexpr int kXDepth = 64;      // columns of x in a step of its ring
constexpr int kMostGroups = 4;   // of a step of W

struct Args {
  stream::Output out;
  Plan plan;
  stream::Parts parts;
  int group_size;
  int groups;
  int step_groups;  // groups that a step of W loads: 1, 2 or 4
};

/// Sizes of a kernel: kGroups warpgroups, each with 64 rows of a tile. With kPair two thread blocks
/// that share a tile are a cluster (int4_exchange.cuh).
template <int kGroups_, int kTokens_, int kWStages_, int kXStages_, bool kPair_ = false>
struct Sizes {
  static constexpr bool kPair = kPair_;
  static constexpr int kGroups = kGroups_;
  static constexpr int kTokens = kTokens_;
  static constexpr int kWStages = kWStages_;
  static constexpr int kXStages = kXStages_;
  static constexpr int kConsumers = 128 * kGroups;
  static constexpr int kThreads = kConsumers + kProducers;
  static constexpr int kTiles = 4 * kGroups;                  // of 16 rows
  static_assert(kTiles * 16 * kTokens <= stream::kMostSums);  // or an exchange leaves its room
  // All of what the thread block starts with: 384 x 168, 512 x 128 or 640 x 96 registers.
  static constexpr int kRegisters = kGroups == 2 ? 232 : kGroups == 3 ? 152 : 112;
  static constexpr int kProducerRegisters = kGroups == 2 ? 40 : kGroups == 3 ? 56 : 32;
  static_assert(kConsumers * kRegisters + kProducers * kProducerRegisters <=
                65536 / kThreads / 8 * 8 * kThreads);
};

/// Shared memory: stages of x [kTokens][64] in lines of 128 bytes with the copy engine's swizzle,
/// and of W: 16-row tiles [kTiles][2 (64 columns)][32] of 16 bytes and their scales
/// [kTiles][step_groups][8] of 8 bytes. For each stage barriers that say it is full and it is done
/// with.
template <class S>
struct Layout {
  static constexpr int kWStages = S::kWStages;
  static constexpr int kXStages = S::kXStages;
  static constexpr int kXBytes = S::kTokens * 128;
  static constexpr int kQBytes = S::kTiles * 1024;
  static constexpr int kGroupBytes = S::kTiles * 64;
  static constexpr int kWBytes = kQBytes + kMostGroups * kGroupBytes;
  static constexpr int kW = kXStages * kXBytes;
  static constexpr int kBarriers = kW + kWStages * kWBytes;
  static constexpr int kBytes = kBarriers + 2 * (kWStages + kXStages) * 8;
  static_assert(!S::kPair || 64 * S::kGroups * S::kTokens * 2 <= kBarriers);

  uint32_t base;
  __device__ __forceinline__ uint32_t x(int stage) const { return base + stage * kXBytes; }
  __device__ __forceinline__ uint32_t q(int stage) const { return base + kW + stage * kWBytes; }
  __device__ __forceinline__ uint32_t scales(int stage) const { return q(stage) + kQBytes; }
  __device__ __forceinline__ uint32_t w_full(int stage) const {
    return base + kBarriers + stage * 8;
  }
  __device__ __forceinline__ uint32_t w_done(int stage) const { return w_full(kWStages + stage); }
  __device__ __forceinline__ uint32_t x_full(int stage) const {
    return w_full(2 * kWStages + stage);
  }
  __device__ __forceinline__ uint32_t x_done(int stage) const { return x_full(kXStages + stage); }
};

/// One thread: keeps W up to kWStages steps ahead of the fragments.
template <class S>
__device__ __forceinline__ void produce_w(const Args& a, const CUtensorMap* q_map,
                                          const CUtensorMap* scale_map, const Layout<S>& layout) {
  using L = Layout<S>;
  const uint64_t policy = evict_first_policy();
  const bool once = a.plan.token_tiles == 1;
  Ring<S::kWStages> ring;
  int waits = -S::kWStages;
  for (Segment s(a.plan); s.valid(a.plan); s.next(a.plan)) {
    const int row_tile = s.tile / a.plan.token_tiles * S::kTiles;
    for (int k = s.k_begin; k < s.k_end; ++k, ++waits, ring.next()) {
      if (waits >= 0) mbarrier_wait(layout.w_done(ring.stage), ring.parity ^ 1);
      const uint32_t full = layout.w_full(ring.stage);
      const int group = min(k * kDepth / a.group_size, a.groups - 1);
      mbarrier_expect(full, L::kQBytes + a.step_groups * L::kGroupBytes);
      if (once) {
        tma_load(layout.q(ring.stage), q_map, k * 256, row_tile, full, policy);
      } else {
        tma_load(layout.q(ring.stage), q_map, k * 256, row_tile, full);
      }
      tma_load(layout.scales(ring.stage), scale_map, group * 16, row_tile, full);
    }
  }
}

/// One thread: keeps x up to kXStages steps ahead of the products.
template <class S>
__device__ __forceinline__ void produce_x(const Args& a, const CUtensorMap* map,
                                          const Layout<S>& layout) {
  Ring<S::kXStages> ring;
  int waits = -S::kXStages;
  for (Segment s(a.plan); s.valid(a.plan); s.next(a.plan)) {
    const int token = s.tile % a.plan.token_tiles * S::kTokens;
    for (int k = 2 * s.k_begin; k < 2 * s.k_end; ++k, ++waits, ring.next()) {
      if (waits >= 0) mbarrier_wait(layout.x_done(ring.stage), ring.parity ^ 1);
      mbarrier_expect(layout.x_full(ring.stage), Layout<S>::kXBytes);
      tma_load(layout.x(ring.stage), map, k * kXDepth, token, layout.x_full(ring.stage));
    }
  }
}

/// What a lane needs of 16 rows and 64 columns, as stored.
struct Packed64 {
  uint4 q;
  uint2 scales[2];  // of the two halves of the columns
};

template <class T, class Out, bool kGated, class S>
__device__ __forceinline__ void consume(const Args& a, const Layout<S>& layout) {
  constexpr int kTokens = S::kTokens;
  constexpr int kHalves = 2;  // of a step of W, 64 columns each
  constexpr int kVectors = kTokens / 8;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const uint32_t q_at = warp * 1024 + lane * 16;
  const uint32_t scales_at = (warp * a.step_groups * 8 + lane / 4) * 8;
  const bool fine = a.step_groups == kMostGroups;
  const uint32_t half_scales = a.step_groups > 1 ? a.step_groups * 32 : 0;  // 64 columns further
  Ring<S::kWStages> w_ring;
  Ring<S::kXStages> x_ring;
  float acc[kVectors][4];
  auto& d = reinterpret_cast<float(&)[kTokens / 2]>(acc);
  // Descriptors of x differ in the address, which counts in 16 bytes.
  const uint64_t x_first = wgmma_descriptor(layout.x(0), 16, 1024);
  const uint64_t x_format = x_first & ~uint64_t{0xffffffffU};
  const auto x_lines = static_cast<uint32_t>(x_first);
  uint32_t fragments[4][4];  // of 16 columns each; two are ahead of the products

  const auto fetch = [&](int half) {
    Packed64 packed;
    packed.q = load_shared_16(layout.q(w_ring.stage) + q_at + half * 512);
    const uint32_t scales = layout.scales(w_ring.stage) + scales_at + half * half_scales;
    packed.scales[0] = load_shared_8(scales);
    packed.scales[1] = fine ? load_shared_8(scales + 64) : packed.scales[0];
    return packed;
  };
  const auto arrive = [&](uint32_t barrier) {
    __syncwarp();
    if (lane == 0) mbarrier_arrive(barrier);
  };
  for (Segment s(a.plan); s.valid(a.plan); s.next(a.plan)) {
#pragma unroll
    for (float& sum : d) sum = 0.0F;
    mbarrier_wait(layout.w_full(w_ring.stage), w_ring.parity);
    Packed64 packed = fetch(0);
    GroupScales<T> scales(packed.scales[0]);
    scales.dequantise(packed.q.x, fragments[0]);
    scales.dequantise(packed.q.y, fragments[1]);
    int x_before = -1;  // the stage of x whose products may still be under way
    for (int k = s.k_begin; k < s.k_end; ++k) {
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        const bool last = half == kHalves - 1 && k + 1 == s.k_end;
        mbarrier_wait(layout.x_full(x_ring.stage), x_ring.parity);
        const uint32_t x = x_lines + x_ring.stage * (Layout<S>::kXBytes / 16);
        // A product with A in registers keeps its warps from the next one until it has begun, so
        // the fragments are made between products, one for each.
        const auto multiply = [&](int i) {
          wgmma_fence();
          Wgmma<T, kTokens>::template rs<0>(d, fragments[i], x_format | (x + i * 2));
          wgmma_commit();
        };
        multiply(0);
        wgmma_wait<2>();
        if (fine) scales = GroupScales<T>(packed.scales[1]);
        scales.dequantise(packed.q.z, fragments[2]);
        multiply(1);
        const uint32_t q = packed.q.w;
        if (half == kHalves - 1) {
          arrive(layout.w_done(w_ring.stage));
          w_ring.next();
          if (!last) mbarrier_wait(layout.w_full(w_ring.stage), w_ring.parity);
        }
        if (!last) packed = fetch((half + 1) % kHalves);
        wgmma_wait<2>();
        if (x_before >= 0) arrive(layout.x_done(x_before));
        x_before = x_ring.stage;
        scales.dequantise(q, fragments[3]);
        multiply(2);
        wgmma_wait<2>();
        if (!last) {
          scales = GroupScales<T>(packed.scales[0]);
          scales.dequantise(packed.q.x, fragments[0]);
        }
        multiply(3);
        wgmma_wait<2>();
        if (!last) scales.dequantise(packed.q.y, fragments[1]);
        x_ring.next();
      }
    }
    wgmma_wait<0>();
    wgmma_hold(d);
    arrive(layout.x_done(x_before));

    const int row = (s.tile / a.plan.token_tiles * S::kTiles + warp) * 16;
    const int token_tile = s.tile % a.plan.token_tiles;
    const int first = token_tile * kVectors;
    stream::Output out = a.out;
    out.m = min(out.m, (token_tile + 1) * kTokens);
    store_sums<T, Out, kGated, S::kPair, S::kConsumers>(out, a.parts, a.plan, s, acc, row, first,
                                                        layout.base);
  }
}

template <class T, class Out, bool kGated, class S>
__global__ void __launch_bounds__(S::kThreads, 1)
    int4_wgmma_kernel(const Args a, const __grid_constant__ CUtensorMap q_map,
                      const __grid_constant__ CUtensorMap scale_map,
                      const __grid_constant__ CUtensorMap x_map) {
  extern __shared__ __align__(1024) uint8_t shared[];
  const Layout<S> layout{shared_address(shared)};
  grid_dependency_launch();
  if (threadIdx.x == S::kConsumers) {
    tma_prefetch_map(&q_map);
    tma_prefetch_map(&scale_map);
    tma_prefetch_map(&x_map);
    for (int stage = 0; stage < S::kWStages; ++stage) {
      mbarrier_init(layout.w_full(stage), 1);
      mbarrier_init(layout.w_done(stage), S::kConsumers / 32);
    }
    for (int stage = 0; stage < S::kXStages; ++stage) {
      mbarrier_init(layout.x_full(stage), 1);
      mbarrier_init(layout.x_done(stage), S::kConsumers / 32);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x >= S::kConsumers) {
    registers_decrease<S::kProducerRegisters>();
    if (threadIdx.x == S::kConsumers) {
      produce_w<S>(a, &q_map, &scale_map, layout);  // W is constant; all else is not
    } else if (threadIdx.x == S::kConsumers + 32) {
      grid_dependency_wait();
      produce_x<S>(a, &x_map, layout);
    }
    if constexpr (S::kPair) {  // see store_sums()
      cluster_sync();
      cluster_sync();
    }
  } else {
    registers_increase<S::kRegisters>();
    grid_dependency_wait();
    consume<T, Out, kGated, S>(a, layout);
  }
}

}  // namespace treadle::cuda::int4::wgmma
