// The kernel of stream_linear.h (sm_90a). W's rows are the rows of the tensor cores' products and
// the tokens their columns, so that few tokens waste little. Two threads keep rings of stages
// filled by the copy engine, one W and one x, and two warpgroups multiply 64 rows each.
//
// W's ring is filled while the kernels ahead are still running; only x waits for them.
#pragma once

#include "common/mbarrier.cuh"
#include "common/ptx.cuh"
#include "common/vec.cuh"
#include "common/wgmma.cuh"
#include "linear/stream_plan.h"

namespace treadle::cuda::stream {

constexpr int kConsumerWarps = 8;
constexpr int kConsumers = 32 * kConsumerWarps;
constexpr int kThreads = kConsumers + 64;

struct Args {
  void* y;            // [m][columns]
  const float* bias;  // [n] or null
  int n;              // rows of W
  int columns;        // n, or n / 2 for gated activation
  int m;              // tokens
  bool add;           // to y
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

/// Position in a ring.
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
    mbarrier_expect(layout.x_full(ring.stage), L::kXBytes);
    tma_load(layout.x(ring.stage), map, step.k * kDepth, 0, layout.x_full(ring.stage));
  }
}

/// The 8x8 16-bit matrix that the warp holds (two neighbours of row lane / 4 in each lane),
/// transposed.
__device__ __forceinline__ uint32_t transpose(uint32_t pair) {
  uint32_t d;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(d) : "r"(pair));
  return d;
}
template <class T>
__device__ __forceinline__ float low_of(uint32_t pair) {
  return to_float(__builtin_bit_cast(T, static_cast<uint16_t>(pair)));
}
template <class T>
__device__ __forceinline__ float high_of(uint32_t pair) {
  return to_float(__builtin_bit_cast(T, static_cast<uint16_t>(pair >> 16)));
}

/// Stores some of the sums that a warp has of a tile, which is 16 rows of W from `row` on, or when
/// gated 8 columns of y from row / 2 on: kCount groups of 8 tokens, every `stride`-th from `first`
/// on.
template <class T, class Out, bool kGated, int kCount>
__device__ __forceinline__ void store(const Args& a, const float (&sums)[kCount][4], int row,
                                      int first, int stride) {
  const int lane = threadIdx.x % 32;
  const int group = lane / 4;
  const int quad = lane % 4;
  float bias[2] = {0.0F, 0.0F};
  if (a.bias != nullptr) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = kGated ? row / 2 + group + half * a.columns : row + group + half * 8;
      if (at < a.n) bias[half] = a.bias[at];
    }
  }
  // Sums are pairs of tokens of one column; memory wants pairs of columns of one token.
  const auto place = [&](int i, int half) {
    const int token = 8 * (first + i * stride) + group;
    const int column = kGated ? row / 2 + 2 * quad : row + 8 * half + 2 * quad;
    return token < a.m && column < a.columns
               ? reinterpret_cast<uint32_t*>(static_cast<T*>(a.y) + size_t(token) * a.columns +
                                             column)
               : nullptr;
  };
  if constexpr (std::is_same_v<Out, float>) {
    float* y = static_cast<float*>(a.y);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int token = 8 * (first + i * stride) + 2 * quad + j % 2;
        const int column = row + group + j / 2 * 8;
        if (token < a.m && column < a.n) y[size_t(token) * a.n + column] = sums[i][j] + bias[j / 2];
      }
    }
  } else if constexpr (kGated) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      float h[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        // As the two kernels of a larger batch do it: gate and up are rounded on the way.
        h[j] = silu(to_float(from_float<T>(sums[i][j] + bias[0]))) *
               to_float(from_float<T>(sums[i][2 + j] + bias[1]));
      }
      const uint32_t pair = transpose(pack2<T>(h[0], h[1]));
      if (uint32_t* to = place(i, 0)) *to = pair;
    }
  } else {
    constexpr int kBatch = kCount < 4 ? kCount : 4;  // groups whose loads wait for memory together
    static_assert(kCount % kBatch == 0);
#pragma unroll
    for (int begin = 0; begin < kCount; begin += kBatch) {
      uint32_t old[kBatch][2];
      if (a.add) {
#pragma unroll
        for (int i = 0; i < 2 * kBatch; ++i) {
          const uint32_t* from = place(begin + i / 2, i % 2);
          old[i / 2][i % 2] = from != nullptr ? *from : 0;
        }
      }
#pragma unroll
      for (int i = 0; i < 2 * kBatch; ++i) {
        const float* sum = sums[begin + i / 2] + i % 2 * 2;
        float low = sum[0] + bias[i % 2];
        float high = sum[1] + bias[i % 2];
        if (a.add) {
          const uint32_t pair = transpose(old[i / 2][i % 2]);
          low += low_of<T>(pair);
          high += high_of<T>(pair);
        }
        const uint32_t pair = transpose(pack2<T>(low, high));
        if (uint32_t* to = place(begin + i / 2, i % 2)) *to = pair;
      }
    }
  }
}

/// Exchanges the parts of a split tile: each of its thread blocks gets the sums of every split-th
/// group of 8 tokens, from its own number on. All of them run at once, because a thread block waits
/// for nobody before this and the grid fits the GPU.
template <int kVectors, int kOwn>
__device__ __forceinline__ void exchange(const Args& a, const float (&acc)[kVectors][4],
                                         float (&sums)[kOwn][4], int tile, int part) {
  constexpr int kParts = kOwn < 8 ? 8 / kOwn : 1;  // whose loads wait for memory together
  const int split = a.plan.split;
  float4* parts = reinterpret_cast<float4*>(a.parts.sums) +
                  size_t(tile) * split * kVectors * kConsumers + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    parts[(part * kVectors + i) * kConsumers] =
        make_float4(acc[i][0], acc[i][1], acc[i][2], acc[i][3]);
  }
  // Once for "my part is there" and once for "I have read"; the last to have read resets it.
  int* counter = a.parts.counters + tile;
  named_sync(1, kConsumers);
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(counter, 1);
    int there = 0;
    do {
      asm volatile("ld.acquire.gpu.global.s32 %0, [%1];\n" : "=r"(there) : "l"(counter) : "memory");
    } while (there < split);
  }
  named_sync(1, kConsumers);
#pragma unroll
  for (int i = 0; i < kOwn; ++i) sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = 0.0F;
  for (int begin = 0; begin < split; begin += kParts) {
    float4 v[kParts][kOwn];
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        const int vector = part + i * split;
        v[j][i] = begin + j < split && vector < kVectors
                      ? __ldcg(parts + ((begin + j) * kVectors + vector) * kConsumers)
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
  named_sync(1, kConsumers);
  if (threadIdx.x == 0 && atomicAdd(counter, 1) == 2 * split - 1) *counter = 0;
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
      store<T, Out, kGated>(a, acc, row, 0, 1);
    } else {
      const int part = static_cast<int>(blockIdx.x) % a.plan.split;
      float sums[kVectors / 2][4];
      exchange(a, acc, sums, tile, part);
      store<T, Out, kGated>(a, sums, row, part, a.plan.split);
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
