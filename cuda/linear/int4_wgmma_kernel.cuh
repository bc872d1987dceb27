// The kernel of int4_wgmma.h (sm_90a): the streaming product (stream_kernel.cuh) with W of 4 bits.
// W's rows are the rows of the tensor cores' products and the tokens their columns. A thread keeps
// a ring of stages filled by the copy engine, each 128 columns of W with their scales and of x.
// Warpgroups with 64 rows each turn W into fragments in registers while their last products are
// under way.
//
// W is loaded while the kernels ahead are still running; only x waits for them.
#pragma once

#include "common/cluster.cuh"
#include "common/mbarrier.cuh"
#include "common/ptx.cuh"
#include "common/wgmma.cuh"
#include "linear/int4_exchange.cuh"
#include "linear/int4_fragments.cuh"
#include "linear/int4_wgmma_plan.h"

namespace treadle::cuda::int4::wgmma {

constexpr int kProducers = 128;  // one thread of these, but registers are given by warpgroups
constexpr int kMostGroups = 4;   // of a step
constexpr int kProducts = kDepth / 16;  // of a step

struct Args {
  stream::Output out;
  Plan plan;
  stream::Parts parts;
  int group_size;
  int groups;
  int step_groups;  // groups that a step loads: 1, 2 or 4
};

/// Sizes of a kernel: kGroups warpgroups, each with 64 rows of a tile. With kScaled a step lies in
/// one group, its products are of q - zero, and their sums are multiplied by the scale; otherwise
/// the products are of the weights themselves. With kPair two thread blocks that share a tile are a
/// cluster (int4_exchange.cuh). kPerSm: thread blocks that fit a multiprocessor at a time.
template <int kGroups_, int kTokens_, int kStages_, bool kScaled_, int kPerSm_ = 1,
          bool kPair_ = false>
struct Sizes {
  static constexpr bool kPair = kPair_;
  static constexpr bool kScaled = kScaled_;
  static constexpr int kGroups = kGroups_;
  static constexpr int kTokens = kTokens_;
  static constexpr int kStages = kStages_;
  static constexpr int kPerSm = kPerSm_;
  static constexpr int kConsumers = 128 * kGroups;
  static constexpr int kThreads = kConsumers + kProducers;
  static constexpr int kTiles = 4 * kGroups;                  // of 16 rows
  static_assert(kTiles * 16 * kTokens <= stream::kMostSums);  // or an exchange leaves its room
  // All of what the thread block starts with: 384 x 168 or twice 80, 512 x 128 or 640 x 96.
  static constexpr int kRegisters = kPerSm == 2    ? 104
                                    : kGroups == 2 ? 232
                                    : kGroups == 3 ? 152
                                                   : 112;
  static constexpr int kProducerRegisters = kPerSm == 2 || kGroups == 4 ? 32
                                            : kGroups == 2              ? 40
                                                                        : 56;
  static_assert(kConsumers * kRegisters + kProducers * kProducerRegisters <=
                65536 / (kPerSm * kThreads) / 8 * 8 * kThreads);
};

/// Shared memory: stages, each of x [2 (64 columns)][kTokens][64] in lines of 128 bytes with the
/// copy engine's swizzle, and W's 16-row tiles [kTiles][2 (64 columns)][32] of 16 bytes; then each
/// stage's scales [kTiles][step_groups][8] of 8 bytes; then for each stage barriers that say it is
/// full and it is done with.
template <class S>
struct Layout {
  static constexpr int kXBytes = S::kTokens * 256;
  static constexpr int kQBytes = S::kTiles * 1024;
  static constexpr int kGroupBytes = S::kTiles * 64;
  static constexpr int kStageBytes = kXBytes + kQBytes;
  static constexpr int kStageScales = (S::kScaled ? 1 : kMostGroups) * kGroupBytes;
  static constexpr int kScales = S::kStages * kStageBytes;
  static constexpr int kBarriers = kScales + S::kStages * kStageScales;
  static constexpr int kBytes = kBarriers + 2 * S::kStages * 8;
  static_assert(kBytes <= (S::kPerSm == 2 ? 113 : 227) << 10);
  static_assert(!S::kPair || 64 * S::kGroups * S::kTokens * 2 <= kBarriers);

  uint32_t base;
  __device__ __forceinline__ uint32_t x(int stage) const { return base + stage * kStageBytes; }
  __device__ __forceinline__ uint32_t q(int stage) const { return x(stage) + kXBytes; }
  __device__ __forceinline__ uint32_t scales(int stage) const {
    return base + kScales + stage * kStageScales;
  }
  __device__ __forceinline__ uint32_t full(int stage) const { return base + kBarriers + stage * 8; }
  __device__ __forceinline__ uint32_t done(int stage) const { return full(S::kStages + stage); }
};

/// The steps of a thread block, one after the other, and where each is. A step divides nothing: the
/// first ones would come late.
template <class S>
class Steps {
 public:
  __device__ __forceinline__ explicit Steps(const Args& a) : a_(a), segment_(a.plan) { enter(); }
  __device__ __forceinline__ bool valid() const { return segment_.valid(a_.plan); }
  __device__ __forceinline__ void next() {
    if (++k_ == segment_.k_end) {
      segment_.next(a_.plan);
      enter();
    } else if (a_.step_groups > 1) {
      group_ += a_.step_groups;
    } else if ((column_ += kDepth) >= a_.group_size) {
      column_ = 0;
      ++group_;
    }
  }
  __device__ __forceinline__ int k() const { return k_; }
  __device__ __forceinline__ int row_tile() const { return row_tile_; }
  __device__ __forceinline__ int token() const { return token_; }
  __device__ __forceinline__ int group() const { return min(group_, a_.groups - 1); }

 private:
  __device__ __forceinline__ void enter() {
    k_ = segment_.k_begin;
    group_ = k_ * kDepth / a_.group_size;
    column_ = k_ * kDepth - group_ * a_.group_size;
    const int row = segment_.tile / a_.plan.token_tiles;
    row_tile_ = row * S::kTiles;
    token_ = (segment_.tile - row * a_.plan.token_tiles) * S::kTokens;
  }

  const Args& a_;
  Segment segment_;
  int k_;
  int group_, column_;  // the group of the step's first column, and that column's place in it
  int row_tile_, token_;
};

/// One thread: keeps the ring up to kStages steps ahead of the products.
template <class S>
__device__ __forceinline__ void produce(const Args& a, const CUtensorMap* q_map,
                                        const CUtensorMap* scale_map, const CUtensorMap* x_map,
                                        const Layout<S>& layout) {
  using L = Layout<S>;
  const uint64_t policy = evict_first_policy();
  const bool once = a.plan.token_tiles == 1;
  const int bytes = L::kXBytes + L::kQBytes + a.step_groups * L::kGroupBytes;
  const auto load_w = [&](const Steps<S>& step, int stage) {
    const uint32_t full = layout.full(stage);
    mbarrier_expect(full, bytes);
    if (once) {
      tma_load(layout.q(stage), q_map, step.k() * 256, step.row_tile(), full, policy);
    } else {
      tma_load(layout.q(stage), q_map, step.k() * 256, step.row_tile(), full);
    }
    tma_load(layout.scales(stage), scale_map, step.group() * 16, step.row_tile(), full);
  };
  const auto load_x = [&](const Steps<S>& step, int stage) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      tma_load(layout.x(stage) + half * (L::kXBytes / 2), x_map, step.k() * kDepth + half * 64,
               step.token(), layout.full(stage));
    }
  };
  Steps<S> w(a);
  Steps<S> x(a);
  for (int i = 0; i < S::kStages && w.valid(); ++i, w.next()) load_w(w, i);
  grid_dependency_wait();  // W is constant; all else is not
  for (int i = 0; i < S::kStages && x.valid(); ++i, x.next()) load_x(x, i);
  for (Ring<S::kStages> ring; w.valid(); w.next(), ring.next()) {
    mbarrier_wait(layout.done(ring.stage), ring.parity);
    load_w(w, ring.stage);
    load_x(w, ring.stage);
  }
}

template <class T, class Out, bool kGated, class S>
__device__ __forceinline__ void consume(const Args& a, const Layout<S>& layout) {
  using L = Layout<S>;
  constexpr bool kScaled = S::kScaled;
  constexpr int kTokens = S::kTokens;
  constexpr int kVectors = kTokens / 8;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const uint32_t q_at = warp * 1024 + lane * 16;
  const int step_groups = kScaled ? 1 : a.step_groups;
  const uint32_t scales_at = (warp * step_groups * 8 + lane / 4) * 8;
  float total[kVectors][4];
  float group[kScaled ? kVectors : 1][4];  // sums of a step
  auto& d = reinterpret_cast<float(&)[kTokens / 2]>(*(kScaled ? &group[0][0] : &total[0][0]));
  // Descriptors of x differ in the address, which counts in 16 bytes.
  const uint64_t x_first = wgmma_descriptor(layout.x(0), 16, 1024);
  const uint64_t x_format = x_first & ~uint64_t{0xffffffffU};
  const auto x_lines = static_cast<uint32_t>(x_first);
  // The ring twice: this one for what is the same in all lanes of a warp, in registers that are.
  Ring<S::kStages> ring;
  int stage = 0;
  uint32_t fragments[4][4];  // of 16 columns each; two are ahead of the products

  for (Segment s(a.plan); s.valid(a.plan); s.next(a.plan)) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      total[i][0] = total[i][1] = total[i][2] = total[i][3] = 0.0F;
    }
    for (int k = s.k_begin; k < s.k_end; ++k) {
      mbarrier_wait(layout.full(ring.stage), ring.parity);
      const uint32_t q_from = layout.q(stage) + q_at;
      const uint32_t scales_from = layout.scales(stage) + scales_at;
      uint4 four = load_shared_16(q_from);  // words, of 16 columns each
      const uint2 words = load_shared_8(scales_from);
      GroupScales<T> scales(words);
      const auto make = [&](int i) {            // fragment i of the step
        if (!kScaled && i > 0 && i % 2 == 0) {  // groups of 32 or 64
          if (step_groups == kMostGroups) {
            scales = GroupScales<T>(load_shared_8(scales_from + i / 2 * 64));
          } else if (i == 4 && step_groups == 2) {
            scales = GroupScales<T>(load_shared_8(scales_from + 64));
          }
        }
        const uint32_t word = i % 4 == 0   ? four.x
                              : i % 4 == 1 ? four.y
                              : i % 4 == 2 ? four.z
                                           : four.w;
        if constexpr (kScaled) {
          scales.zeros.unpack(word, fragments[i % 4]);
        } else {
          scales.dequantise(word, fragments[i % 4]);
        }
        if (i == 3) four = load_shared_16(q_from + 512);
      };
      const uint32_t x = x_lines + ring.stage * (L::kStageBytes / 16);
      make(0);
      make(1);
      // A product with A in registers keeps its warps from the next one until it has begun, so the
      // fragments are made between products, one for each.
#pragma unroll
      for (int i = 0; i < kProducts; ++i) {
        const uint64_t b = x_format | (x + i / 4 * (L::kXBytes / 32) + i % 4 * 2);
        wgmma_fence();
        if (kScaled && i == 0) {
          Wgmma<T, kTokens>::template rs<0, false>(d, fragments[i % 4], b);
        } else {
          Wgmma<T, kTokens>::template rs<0>(d, fragments[i % 4], b);
        }
        wgmma_commit();
        if (i + 2 < kProducts) {
          if (i >= 2) wgmma_wait<2>();  // product i - 2 has used the registers
          make(i + 2);
        }
      }
      wgmma_wait<0>();
      wgmma_hold(d);
      __syncwarp();
      if (lane == 0) mbarrier_arrive(layout.done(stage));
      if constexpr (kScaled) {
        const float scale[2] = {__uint_as_float(words.x & 0xffffff00U),
                                __uint_as_float(words.y & 0xffffff00U)};
#pragma unroll
        for (int i = 0; i < kVectors; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) total[i][j] += scale[j / 2] * group[i][j];
        }
      }
      ring.next();
      if (++stage == S::kStages) stage = 0;
    }
    const int row = (s.tile / a.plan.token_tiles * S::kTiles + warp) * 16;
    const int token_tile = s.tile % a.plan.token_tiles;
    const int first = token_tile * kVectors;
    stream::Output out = a.out;
    out.m = min(out.m, (token_tile + 1) * kTokens);
    store_sums<T, Out, kGated, S::kPair, S::kConsumers>(out, a.parts, a.plan, s, total, row, first,
                                                        layout.base);
  }
}

template <class T, class Out, bool kGated, class S>
__global__ void __launch_bounds__(S::kThreads, S::kPerSm)
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
    for (int stage = 0; stage < S::kStages; ++stage) {
      mbarrier_init(layout.full(stage), 1);
      mbarrier_init(layout.done(stage), S::kConsumers / 32);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  // By way of lane 0, so that the compiler sees that warps do not part here.
  if (__shfl_sync(0xffffffffU, threadIdx.x / 32, 0) >= S::kConsumers / 32) {
    registers_decrease<S::kProducerRegisters>();
    if (threadIdx.x == S::kConsumers) produce<S>(a, &q_map, &scale_map, &x_map, layout);
    __syncwarp();
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
