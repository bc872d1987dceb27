// The kernel of tile_linear.h (sm_90a): a gated layer of many tokens, the activation included.
//
// A thread block computes 128 tokens x kRows rows of W (half of them gates, half their ups), tile
// after tile. The two thread blocks of a cluster have the same rows, or the same tokens, and each
// loads half of them for both, because L2 could not feed all multiprocessors otherwise. One thread
// keeps a ring of stages (64 columns of x and W) filled by the copy engine, and two warpgroups
// multiply 64 tokens each. They gate and store a tile's sums while the tensor cores are at the
// next.
#pragma once

#include "common/cluster.cuh"
#include "common/mbarrier.cuh"
#include "common/ptx.cuh"
#include "common/vec.cuh"
#include "common/wgmma.cuh"
#include "linear/tile_plan.h"

namespace treadle::cuda::tile {

constexpr int kConsumerWarps = 8;
constexpr int kConsumers = 32 * kConsumerWarps;
constexpr int kThreads = kConsumers + 128;  // a warpgroup for the loads: registers move by these

struct Args {
  void* y;      // [m][columns]
  int columns;  // half of the rows of W
  int m;        // tokens
  int box;      // tokens of x that the copy engine brings at a time; divides kTokens / kCluster,
                // or kTokens where the cluster shares W
  Plan plan;
};

/// Shared memory: stages of x [128][64] and W [kRows][64] in lines of 128 bytes with the copy
/// engine's swizzle, 16 lines of a piece of the results of each warp, a barrier for each stage that
/// is full and for each that is free again (in both thread blocks).
template <int kRows, int kStages>
struct Layout {
  static constexpr int kXBytes = kTokens * 128;
  static constexpr int kWBytes = kRows * 128;
  static constexpr int kStageBytes = kXBytes + kWBytes;
  // Columns of y are stored in pieces of two groups of eight.
  static constexpr int kGroups = kRows / 16;
  static constexpr int kPieceGroups = 2;
  static constexpr int kPieces = (kGroups + kPieceGroups - 1) / kPieceGroups;
  static constexpr int kOutBytes = (kPieceGroups + 1) * 16;  // an odd multiple: no conflicts
  static constexpr int kOut = kStages * kStageBytes;
  static constexpr int kBarriers = kOut + kConsumerWarps * 16 * kOutBytes;
  static constexpr int kBytes = kBarriers + 2 * kStages * 8;
  static_assert(kPieces <= kLeastDepth / kDepth && kBytes <= 227 * 1024);

  uint32_t base;
  __device__ __forceinline__ uint32_t x(int stage) const { return base + stage * kStageBytes; }
  __device__ __forceinline__ uint32_t w(int stage) const { return x(stage) + kXBytes; }
  __device__ __forceinline__ uint32_t full(int stage) const { return base + kBarriers + stage * 8; }
  __device__ __forceinline__ uint32_t free(int stage) const { return full(kStages + stage); }
};

/// Tile `i` of the clusters' order: bands of token tiles, and in each W from the first row to the
/// last, so that what runs at the same time shares x and W in L2.
struct Place {
  int tokens;  // number of the token tile
  int rows;    // number of the tile of W
  __device__ __forceinline__ Place(const Plan& plan, int i) {
    const int band = i / (plan.band * plan.w_tiles);
    const int first = band * plan.band;
    const int width = min(plan.band, plan.token_tiles - first);
    const int within = i - first * plan.w_tiles;
    rows = within / width;
    tokens = first + within % width;
  }
};

/// One thread: keeps the ring filled. Of what both thread blocks need it loads half for both.
template <int kRows, int kStages, Share kShare>
__device__ __forceinline__ void produce(const Args& a, const CUtensorMap* x_map,
                                        const CUtensorMap* w_map,
                                        const Layout<kRows, kStages>& layout) {
  using L = Layout<kRows, kStages>;
  constexpr uint16_t kBoth = 3;
  const int rank = static_cast<int>(cluster_rank());
  const int cluster = static_cast<int>(blockIdx.x) / kCluster;
  const int clusters = static_cast<int>(gridDim.x) / kCluster;
  // W that one round of tiles reads leaves L2 before anything else.
  const uint64_t policy = a.plan.token_tiles == 1 ? evict_first_policy() : evict_normal_policy();
  const auto load_w = [&](int stage, int tile, int k) {
    const uint32_t full = layout.full(stage);
    if constexpr (kShare == Share::kW) {
      const uint32_t to = layout.w(stage) + rank * (L::kWBytes / 2);
      const int row = tile * kRows + rank * (kRows / 2);
      tma_load_4d_multicast(to, w_map, k * kDepth, row / 16, full, kBoth, policy);
    } else {
      const int row = (tile * kCluster + rank) * kRows;
      tma_load_4d(layout.w(stage), w_map, k * kDepth, row / 16, full, policy);
    }
  };
  // What lies outside x is not loaded, because the copy engine is slow to fill in zeros. Stale
  // values there spoil the sums of tokens that do not exist.
  const auto first_token = [&](const Place& place) {
    return (kShare == Share::kW ? place.tokens * kCluster + rank : place.tokens) * kTokens;
  };
  const auto boxes_of = [&](const Place& place) {
    const int left = max(a.m - first_token(place), 0);
    return min((left + a.box - 1) / a.box, kTokens / a.box);
  };
  const int box_bytes = a.box * 128;
  const uint64_t x_policy = evict_normal_policy();
  const auto load_x = [&](int stage, int token, int boxes, int k) {
    const uint32_t full = layout.full(stage);
    const uint32_t to = layout.x(stage);
    if constexpr (kShare == Share::kW) {
      for (int i = 0; i < boxes; ++i) {
        tma_load(to + i * box_bytes, x_map, k * kDepth, token + i * a.box, full);
      }
    } else {
      for (int i = rank; i < boxes; i += kCluster) {
        tma_load_multicast(to + i * box_bytes, x_map, k * kDepth, token + i * a.box, full, kBoth,
                           x_policy);
      }
    }
  };
  // W is constant and x is not: the ring is filled with W while the kernels ahead are running.
  const Place first(a.plan, cluster);
  const int early_bytes = L::kWBytes + boxes_of(first) * box_bytes;
  for (int k = 0; k < kStages; ++k) {
    mbarrier_expect(layout.full(k), early_bytes);
    load_w(k, first.rows, k);
  }
  grid_dependency_wait();
  Ring<kStages> ring;
  int step = 0;
  for (int i = cluster; i < a.plan.tiles; i += clusters) {
    const Place place(a.plan, i);
    const int token = first_token(place);
    const int boxes = boxes_of(place);
    for (int k = 0; k < a.plan.k_blocks; ++k, ++step, ring.next()) {
      if (step >= kStages) {
        mbarrier_wait(layout.free(ring.stage), ring.parity ^ 1);
        mbarrier_expect(layout.full(ring.stage), L::kWBytes + boxes * box_bytes);
        load_w(ring.stage, place.rows, k);
      }
      load_x(ring.stage, token, boxes, k);
    }
  }
}

template <class T>
__device__ __forceinline__ float low_of(uint32_t pair) {
  return to_float(__builtin_bit_cast(T, static_cast<uint16_t>(pair)));
}
template <class T>
__device__ __forceinline__ float high_of(uint32_t pair) {
  return to_float(__builtin_bit_cast(T, static_cast<uint16_t>(pair >> 16)));
}

/// What a thread has of a tile's sums, rounded to act: pairs of neighbouring rows of W, of token
/// lane / 4 and of lane / 4 + 8, for each eight rows; and where in y the warp's begin.
template <int kRows>
struct Sums {
  uint32_t pairs[kRows / 4];
  int token;
  int column;
};

/// Gates a piece of a warp's sums and writes it.
template <class T, int kRows, int kStages>
__device__ __forceinline__ void store(const Args& a, const Sums<kRows>& sums,
                                      const Layout<kRows, kStages>& layout, int piece) {
  using L = Layout<kRows, kStages>;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int first = piece * L::kPieceGroups;
  const int groups = min(L::kPieceGroups, L::kGroups - first);  // the last piece may have one
  // Matrices of stmatrix: tokens 0..7 and 8..15 of a group, then of the next.
  uint32_t r[2 * L::kPieceGroups] = {};
#pragma unroll
  for (int i = 0; i < 2 * groups; ++i) {
    const uint32_t gate = sums.pairs[(first + i / 2) * 4 + i % 2];
    const uint32_t up = sums.pairs[(first + i / 2) * 4 + i % 2 + 2];
    r[i] = pack2<T>(silu(low_of<T>(gate)) * low_of<T>(up), silu(high_of<T>(gate)) * high_of<T>(up));
  }
  const uint32_t out = layout.base + L::kOut + warp * (16 * L::kOutBytes);
  stmatrix_x4(out + lane % 16 * L::kOutBytes + lane / 16 * 16, r);
  __syncwarp();
  // Lines of 16 bytes, neighbours by neighbouring lanes.
  const int line = lane / L::kPieceGroups;
  const int group = lane % L::kPieceGroups;
  const int token = sums.token + line;
  const int column = sums.column + (first + group) * 8;
  if (group < groups && token < a.m && column < a.columns) {
    const uint4 v = load_shared_16(out + line * L::kOutBytes + group * 16);
    *reinterpret_cast<uint4*>(static_cast<T*>(a.y) + size_t(token) * a.columns + column) = v;
  }
  __syncwarp();
}

template <class T, int kRows, int kStages, Share kShare>
__device__ __forceinline__ void consume(const Args& a, const Layout<kRows, kStages>& layout) {
  using L = Layout<kRows, kStages>;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int rank = static_cast<int>(cluster_rank());
  const int cluster = static_cast<int>(blockIdx.x) / kCluster;
  const int clusters = static_cast<int>(gridDim.x) / kCluster;
  const auto release = [&](int stage) {
    if (lane < kCluster) mbarrier_arrive_cluster(layout.free(stage), static_cast<uint32_t>(lane));
  };
  grid_dependency_wait();
  Ring<kStages> ring;
  float acc[kRows / 2];
  Sums<kRows> sums;
  bool left = false;  // sums of the tile before that are not stored yet
  int before = 0;
  const auto multiply = [&](int k) {
    mbarrier_wait(layout.full(ring.stage), ring.parity);
    const uint32_t x = layout.x(ring.stage) + warp / 4 * (64 * 128);
    const uint32_t w = layout.w(ring.stage);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < kDepth / 16; ++j) {
      Wgmma<T, kRows>::ss(acc, wgmma_descriptor(x + j * 32, 16, 1024),
                          wgmma_descriptor(w + j * 32, 16, 1024), k > 0 || j > 0);
    }
    wgmma_commit();
    wgmma_wait<1>();
    if (k > 0) release(before);
    before = ring.stage;
    ring.next();
  };
  for (int i = cluster; i < a.plan.tiles; i += clusters) {
    const Place place(a.plan, i);
    const bool own_tokens = kShare == Share::kW;
    const int token_tile = own_tokens ? place.tokens * kCluster + rank : place.tokens;
    const int w_tile = own_tokens ? place.rows : place.rows * kCluster + rank;
    if (token_tile * kTokens + warp / 4 * 64 >= a.m) {  // a warpgroup without tokens
      for (int k = 0; k < a.plan.k_blocks; ++k, ring.next()) {
        mbarrier_wait(layout.full(ring.stage), ring.parity);
        release(ring.stage);
      }
      continue;
    }
    // The tensor cores multiply while the tile before is stored.
#pragma unroll
    for (int piece = 0; piece < L::kPieces; ++piece) {
      multiply(piece);
      if (left) store<T>(a, sums, layout, piece);
    }
    for (int k = L::kPieces; k < a.plan.k_blocks; ++k) multiply(k);
    wgmma_wait<0>();
    wgmma_hold(acc);
    release(before);
    // Gate and up are rounded on the way, as the two kernels of few tokens do it.
#pragma unroll
    for (int j = 0; j < kRows / 4; ++j) {
      sums.pairs[j] = pack2<T>(acc[2 * j], acc[2 * j + 1]);
      asm volatile("" : "+r"(sums.pairs[j])::"memory");  // or the compiler keeps acc instead
    }
    sums.token = token_tile * kTokens + warp * 16;
    sums.column = w_tile * (kRows / 2);
    left = true;
  }
  if (!left) return;
#pragma unroll
  for (int piece = 0; piece < L::kPieces; ++piece) store<T>(a, sums, layout, piece);
}

template <class T, int kRows, int kStages, Share kShare>
__global__ void __launch_bounds__(kThreads, 1)
    tile_linear_kernel(const Args a, const __grid_constant__ CUtensorMap x_map,
                       const __grid_constant__ CUtensorMap w_map) {
  using L = Layout<kRows, kStages>;
  extern __shared__ __align__(1024) uint8_t shared[];
  const L layout{shared_address(shared)};
  grid_dependency_launch();
  if (threadIdx.x == kConsumers) {
    tma_prefetch_map(&x_map);
    tma_prefetch_map(&w_map);
    for (int stage = 0; stage < kStages; ++stage) {
      mbarrier_init(layout.full(stage), 1);
      mbarrier_init(layout.free(stage), kCluster * kConsumerWarps);
    }
    mbarrier_init_fence();
  }
  cluster_sync();
  if (threadIdx.x >= kConsumers) {
    registers_decrease<40>();
    if (threadIdx.x == kConsumers) {
      produce<kRows, kStages, kShare>(a, &x_map, &w_map, layout);
    }
  } else {
    registers_increase<232>();
    consume<T, kRows, kStages, kShare>(a, layout);
  }
  cluster_sync();  // until then a thread block's partner arrives at its barriers
}

}  // namespace treadle::cuda::tile
