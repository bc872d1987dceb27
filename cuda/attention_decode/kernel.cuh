// The decode kernel. Work is a list of items (sequence, KV head, block of 64 keys) in that order;
// thread block b owns an equal stretch of it. A stretch is cut into tiles, the runs of one sequence
// and KV head. Inside a block of keys warp w owns keys [16 w, 16 w + 16): it copies them with
// cp.async into its own ring of stages and keeps its own softmax state, so warps meet only where a
// tile ends. The query heads of a KV head are the (padded) 16 rows of the matrix product.
//
// A tile that one thread block owns whole is written at once. Of a tile that is cut, each owner
// leaves its unnormalised part in the workspace, and the last to arrive adds the parts in order.
#pragma once

#include "attention_decode/plan.cuh"
#include "common/ptx.cuh"
#include "common/swizzle.cuh"

namespace treadle::cuda::decode {

constexpr int kWarpKeys = 16;

__device__ __forceinline__ void wait_stages(int pending) {
  switch (pending) {
    case 0:
      cp_async_wait<0>();
      break;
    case 1:
      cp_async_wait<1>();
      break;
    case 2:
      cp_async_wait<2>();
      break;
    case 3:
      cp_async_wait<3>();
      break;
    case 4:
      cp_async_wait<4>();
      break;
    default:
      cp_async_wait<5>();
      break;
  }
}

/// The softmax state of one warp: row r of the product is lane / 4, row r + 8 the second half.
template <class T, int kDim>
struct WarpState {
  float out[kDim / 8][4];
  float max[2];
  float sum[2];  // of this lane's columns only, until finish()

  __device__ void clear() {
#pragma unroll
    for (auto& tile : out) tile[0] = tile[1] = tile[2] = tile[3] = 0.0F;
    max[0] = max[1] = -INFINITY;
    sum[0] = sum[1] = 0.0F;
  }
  __device__ void finish() {
    sum[0] = quad_sum(sum[0]);
    sum[1] = quad_sum(sum[1]);
  }

  /// Adds 16 keys: k and v are the stage's halves, keys outside [first, end) are masked.
  __device__ void add(const uint32_t (&q)[kDim / 16][4], uint32_t k, uint32_t v, int lane,
                      float scale_log2, int first, int end) {
    constexpr int kRowBytes = kDim * 2;
    float s[2][4] = {};
    const int row = lane & 7;
    const int matrix = lane >> 3;
    {
      const int key = (matrix >> 1) * 8 + row;
#pragma unroll
      for (int step = 0; step < kDim / 16; ++step) {
        uint32_t b[4];
        ldmatrix_x4(b, k + key * kRowBytes + swizzle<kDim>(key, step * 2 + (matrix & 1)) * 16);
        mma_16816<T>(s[0], q[step], b[0], b[1]);
        mma_16816<T>(s[1], q[step], b[2], b[3]);
      }
    }
    if (first > 0 || end < kWarpKeys) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int key = (i >> 2) * 8 + (lane & 3) * 2 + (i & 1);
        if (key < first || key >= end) s[i >> 2][i & 3] = -INFINITY;
      }
    }
    float base[2];
    float factor[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float top =
          quad_max(fmaxf(fmaxf(s[0][2 * h], s[0][2 * h + 1]), fmaxf(s[1][2 * h], s[1][2 * h + 1])));
      const float now = fmaxf(max[h], top);
      base[h] = now == -INFINITY ? 0.0F : now * scale_log2;
      factor[h] = exp2_approx(max[h] * scale_log2 - base[h]);
      max[h] = now;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float& x = s[i >> 2][i & 3];
      x = exp2_approx(x * scale_log2 - base[(i >> 1) & 1]);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      sum[h] =
          sum[h] * factor[h] + (s[0][2 * h] + s[0][2 * h + 1]) + (s[1][2 * h] + s[1][2 * h + 1]);
    }
    if (__any_sync(0xffffffffU, factor[0] != 1.0F || factor[1] != 1.0F)) {
#pragma unroll
      for (auto& tile : out) {
        tile[0] *= factor[0];
        tile[1] *= factor[0];
        tile[2] *= factor[1];
        tile[3] *= factor[1];
      }
    }
    const uint32_t p[4] = {pack2<T>(s[0][0], s[0][1]), pack2<T>(s[0][2], s[0][3]),
                           pack2<T>(s[1][0], s[1][1]), pack2<T>(s[1][2], s[1][3])};
    const int key = (matrix & 1) * 8 + row;
#pragma unroll
    for (int pair = 0; pair < kDim / 16; ++pair) {
      uint32_t b[4];
      ldmatrix_x4_trans(b, v + key * kRowBytes + swizzle<kDim>(key, pair * 2 + (matrix >> 1)) * 16);
      mma_16816<T>(out[2 * pair], p, b[0], b[1]);
      mma_16816<T>(out[2 * pair + 1], p, b[2], b[3]);
    }
  }
};

/// q rows of one tile as the A operand; rows past the group are zero.
template <class T, int kDim>
__device__ __forceinline__ void load_q(uint32_t (&q)[kDim / 16][4], const T* rows, int group,
                                       int lane) {
  const int r = lane >> 2;
  const T* at = rows + r * kDim + (lane & 3) * 2;
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = r + (i & 1) * 8;
      const T* p = at + (i & 1) * 8 * kDim + step * 16 + (i >> 1) * 8;
      q[step][i] = row < group ? *reinterpret_cast<const uint32_t*>(p) : 0U;
    }
  }
}

/// Brings the queries of this thread block's tiles, one stretch of memory, into L2: behind a full
/// queue of key loads a miss would take microseconds at the start of each tile.
template <class T>
__device__ __forceinline__ void prefetch_q(const Params& p, const Shared& areas, Stretch mine,
                                           int dim) {
  const Tile first = tile_of(p, areas, mine.begin);
  const Tile last = tile_of(p, areas, mine.end - 1);
  const int tile_elems = p.heads / p.kv_heads * dim;
  const int64_t begin = (int64_t{first.sequence} * p.kv_heads + first.kv_head) * tile_elems;
  const int64_t end = (int64_t{last.sequence} * p.kv_heads + last.kv_head + 1) * tile_elems;
  for (int64_t i = begin + threadIdx.x * 64; i < end; i += kThreads * 64) {
    prefetch_l2(static_cast<const T*>(p.q) + i);
  }
}

template <class T, int kDim>
__global__ void __launch_bounds__(kThreads, kDim > 128 ? 1 : 2)
    attention_decode_kernel(const __grid_constant__ Params p) {
  constexpr int kChunks = kDim / 8;  // of 16 bytes in a row
  constexpr int kHalf = kWarpKeys * kDim * 2;
  extern __shared__ __align__(128) uint8_t shared[];
  grid_dependency_launch();
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;

  const Shared areas(p, shared, kDim);
  const uint64_t policy = evict_first_policy();
  const uint32_t ring = shared_address(shared) + warp * p.stages * (2 * kHalf);

  // Lengths, tables and all keys but each sequence's newest are older than the step's first kernel,
  // so that much runs while the kernels ahead drain; see attention_decode.h.
  const int total = build_plan(p, areas);
  const Stretch mine = stretch_of(total, blockIdx.x, gridDim.x);
  if (mine.begin == mine.end) {
    // The grid may not end before the one ahead of it, even where there is nothing to do.
    if (blockIdx.x == 0) grid_dependency_wait();
    return;
  }

  // Lane l knows the page of item `known + l`, and of the 32 items after those.
  ItemPage page = page_of(p, areas, mine.begin + lane, mine.end);
  ItemPage next_page = page_of(p, areas, mine.begin + 32 + lane, mine.end);
  int known = mine.begin;
  int stage_in = 0;
  bool waited = false;
  const int group = p.heads / p.kv_heads;

  auto copy = [&](int item) {
    if (item - known == 32) {
      page = next_page;
      known = item;
      next_page = page_of(p, areas, known + 32 + lane, mine.end);
    }
    const int index = __shfl_sync(0xffffffffU, page.index, item - known);
    const int keys = __shfl_sync(0xffffffffU, page.keys, item - known) - warp * kWarpKeys;
    if (!waited && __shfl_sync(0xffffffffU, page.newest, item - known) != 0) {
      grid_dependency_wait();
      waited = true;
    }
    const T* k = static_cast<const T*>(p.kv) + int64_t{index} * (64 * kDim) +
                 warp * kWarpKeys * kDim + lane * 8;
    const T* v = k + int64_t{p.kv_heads} * (64 * kDim);
    const uint32_t dst = ring + stage_in * (2 * kHalf);
#pragma unroll
    for (int i = 0; i < kChunks / 2; ++i) {
      const int r = (i * 32 + lane) / kChunks;
      const int c = (i * 32 + lane) % kChunks;
      cp_async_16(dst + r * (kDim * 2) + swizzle<kDim>(r, c) * 16, k + i * 256, r < keys, policy);
    }
#pragma unroll
    for (int i = 0; i < kChunks / 2; ++i) {
      const int r = (i * 32 + lane) / kChunks;
      const int c = (i * 32 + lane) % kChunks;
      cp_async_16(dst + kHalf + r * (kDim * 2) + swizzle<kDim>(r, c) * 16, v + i * 256, r < keys,
                  policy);
    }
    stage_in = stage_in + 1 == p.stages ? 0 : stage_in + 1;
  };

  // With little to read, taking bandwidth from the end of the kernel before costs more than it
  // gains.
  const bool brief = mine.end - mine.begin <= 2 * p.stages;
  for (int i = 0; i < p.stages - 1; ++i) {
    if (brief && i == 1 && !waited) {
      grid_dependency_wait();
      waited = true;
    }
    if (mine.begin + i < mine.end) copy(mine.begin + i);
    cp_async_commit();
  }

  if (!waited) grid_dependency_wait();
  if (!brief) prefetch_q<T>(p, areas, mine, kDim);

  int stage_out = 0;
  WarpState<T, kDim> state;
  uint32_t q[kDim / 16][4];
  for (int item = mine.begin; item < mine.end;) {
    const Tile tile = tile_of(p, areas, item);
    const int end = min(tile.end, mine.end);
    load_q<T, kDim>(q,
                    static_cast<const T*>(p.q) +
                        (int64_t{tile.sequence} * p.heads + tile.kv_head * group) * kDim,
                    group, lane);
    state.clear();
    // Keys are numbered from the first key of this warp in the tile's block.
    int key0 = (tile.first_block + item - tile.begin) * 64 + warp * kWarpKeys;
    for (; item < end; ++item, key0 += 64) {
      const int ahead = item + p.stages - 1;
      if (ahead < mine.end) copy(ahead);
      cp_async_commit();
      wait_stages(p.stages - 1);
      __syncwarp();
      const uint32_t at = ring + stage_out * (2 * kHalf);
      state.add(q, at, at + kHalf, lane, p.scale_log2, tile.first_key - key0, tile.length - key0);
      stage_out = stage_out + 1 == p.stages ? 0 : stage_out + 1;
      __syncwarp();
    }
    state.finish();

    // Brings the four warps' states to one maximum and adds them.
    float* stats = areas.stats;  // [4 warps][16 rows][max, sum]
    const int row = lane >> 2;
    __syncthreads();  // the areas are free again
    if ((lane & 3) == 0) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        stats[(warp * 16 + row + 8 * h) * 2] = state.max[h];
        stats[(warp * 16 + row + 8 * h) * 2 + 1] = state.sum[h];
      }
    }
    __syncthreads();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int r = row + 8 * h;
      if (r >= group) continue;
      float top = stats[r * 2];
#pragma unroll
      for (int w = 1; w < kWarps; ++w) top = fmaxf(top, stats[(w * 16 + r) * 2]);
      const float factor =
          top == -INFINITY ? 0.0F : exp2_approx((state.max[h] - top) * p.scale_log2);
      float* to = areas.merge + (warp * group + r) * kDim + (lane & 3) * 2;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        *reinterpret_cast<float2*>(to + n * 8) =
            make_float2(state.out[n][2 * h] * factor, state.out[n][2 * h + 1] * factor);
      }
    }
    __syncthreads();
    finish_tile<T, kDim>(p, areas, tile, mine, total);
  }
}

}  // namespace treadle::cuda::decode
