// The decode kernel. Work is a list of items (sequence, KV head, block of 64 keys) in that order;
// thread block b owns an equal stretch of it. A stretch is cut into tiles, the runs of one sequence
// and KV head. Inside a block of keys warp w owns keys [16 w, 16 w + 16): it copies them with
// cp.async into its own ring of stages and keeps its own softmax state, so warps meet only where a
// tile ends. The query heads of a KV head are the (padded) 16 rows of the matrix product. What
// depends on the pool's type is in keys_16bit.cuh and keys_int8.cuh.
//
// A tile that one thread block owns whole is written at once. Of a tile that is cut, each owner
// leaves its unnormalised part in the workspace, and the last to arrive adds the parts in order.
//
// The kernel can do the QKV operation's work, too. Queries are made by every warp that loads them,
// since each needs them whole; the newest key and value by the warp that has that key.
//
// Where there are many short tiles, an item is 16 keys and its owner a warp, which has whole tiles
// and never meets another.
#pragma once

#include "attention_decode/finish.cuh"
#include "attention_decode/plan.cuh"

namespace treadle::cuda::decode {

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

/// Heads of a row of Params::q.
template <bool kMakes>
__device__ __forceinline__ int heads_of_row(const Params& p) {
  return kMakes ? p.heads + 2 * p.kv_heads : p.heads;
}

/// Brings the queries of these tiles, one stretch of memory, into L2: behind a full queue of key
/// loads a miss would take microseconds at the start of each tile. By `threads` threads.
template <class T, bool kMakes>
__device__ __forceinline__ void prefetch_q(const Params& p, const Shared& areas, int shift,
                                           int near, Stretch mine, int dim, int thread,
                                           int threads) {
  const Tile first = tile_of(p, areas, shift, near, mine.begin);
  const Tile last = tile_of(p, areas, shift, near, mine.end - 1);
  const int group = p.heads / p.kv_heads;
  const int row = heads_of_row<kMakes>(p) * dim;
  const int64_t begin = int64_t{first.sequence} * row + first.kv_head * group * dim;
  const int64_t end = int64_t{last.sequence} * row + (last.kv_head + 1) * group * dim;
  for (int64_t i = begin + thread * 64; i < end; i += threads * 64) {
    prefetch_l2(static_cast<const T*>(p.q) + i);
  }
}

/// Brings to L2 what will be needed between loads that depend on each other, and has left L2 since
/// the layer before. A line for each thread of the grid, for what is brought there is no copy: so
/// this may come before grid_dependency_wait().
__device__ __forceinline__ void prefetch_making(const Params& p, int dim) {
  const int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * 32;
  if (at < int64_t{p.num_decode} * p.block_table_stride) prefetch_l2(p.block_tables + at);
  if (at < int64_t{p.num_decode} * dim) prefetch_l2(p.making.cos_sin + at);
  if (at < dim && p.making.q_norm != nullptr) prefetch_l2(p.making.q_norm + at);
  if (at < dim && p.making.k_norm != nullptr) prefetch_l2(p.making.k_norm + at);
}

/// kMakes: q is the projection, and the QKV operation's work is done here.
template <class Keys, bool kMakes>
__global__ void __launch_bounds__(kThreads, Keys::kBlocksPerSm)
    attention_decode_kernel(const __grid_constant__ Params p) {
  using T = typename Keys::T;
  constexpr int kDim = Keys::kDim;
  static_assert(kWarps * Keys::kStageBytes == stage_bytes(kDim, Keys::kElementBytes));
  extern __shared__ __align__(128) uint8_t shared[];
  grid_dependency_launch();
  if constexpr (kMakes) prefetch_making(p, kDim);
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;

  const typename Keys::Lane at(lane);
  const Shared areas(p, shared + kWarps * p.stages * Keys::kStageBytes, kDim);
  const uint64_t policy = evict_first_policy();
  const uint32_t ring = shared_address(shared) + warp * p.stages * Keys::kStageBytes;

  // Lengths, tables and all keys but each sequence's newest are older than the step's first kernel,
  // so that much runs while the kernels ahead drain; see attention_decode.h.
  __shared__ Plan plan;
  build_plan(p, areas, Keys::kWholeTiles, plan);
  const int shift = plan.shift;
  const bool by_warp = plan.by_warp();
  // Warps of as many thread blocks as there are come first among the owners.
  Stretch mine = stretch_of(
      plan, static_cast<int>(blockIdx.x) + (by_warp ? warp * static_cast<int>(gridDim.x) : 0));
  int sequence = find_sequence(p, areas, min(mine.begin, plan.total - 1));
  if (by_warp) mine = whole_tiles(p, areas, plan, sequence, mine);
  if (mine.begin == mine.end) {
    // The grid may not end before the one ahead of it, even where there is nothing to do.
    if (blockIdx.x == 0) grid_dependency_wait();
    return;
  }

  // Lane l knows the page of item `known + l`, and of the 32 items after those.
  ItemPage<Keys> page =
      page_of<Keys, kMakes>(p, areas, shift, sequence, mine.begin + lane, mine.end);
  ItemPage<Keys> next_page =
      page_of<Keys, kMakes>(p, areas, shift, sequence, mine.begin + 32 + lane, mine.end);
  Tile tile = tile_of(p, areas, shift, sequence, mine.begin);
  int known = mine.begin;
  int stage_in = 0;
  bool waited = false;
  const int group = p.heads / p.kv_heads;
  auto copy = [&](int item) {
    if (item - known == 32) {
      page = next_page;
      known = item;
      next_page = page_of<Keys, kMakes>(p, areas, shift, sequence, known + 32 + lane, mine.end);
    }
    const typename Keys::Place place = page.place.of_lane(item - known);
    const int facts = __shfl_sync(0xffffffffU, page.facts, item - known);
    if (!waited && facts >> 16 != 0) {
      grid_dependency_wait();
      waited = true;
    }
    Keys::copy(p, place, facts & 0xff, ring + stage_in * Keys::kStageBytes, facts >> 8 & 0xff, at,
               policy);
    stage_in = stage_in + 1 == p.stages ? 0 : stage_in + 1;
  };

  // With little to read, taking bandwidth from the end of the kernel before costs more than it
  // gains, unless there is no QKV operation in which to read.
  const bool brief = mine.end - mine.begin <= 2 * p.stages;
  for (int i = 0; i < p.stages - 1; ++i) {
    if (!kMakes && brief && i == 1 && !waited) {
      grid_dependency_wait();
      waited = true;
    }
    if (mine.begin + i < mine.end) copy(mine.begin + i);
    cp_async_commit();
  }

  if (!waited) grid_dependency_wait();
  if (!brief) {
    prefetch_q<T, kMakes>(p, areas, shift, sequence, mine, kDim, by_warp ? lane : threadIdx.x,
                          by_warp ? 32 : kThreads);
  }

  int stage_out = 0;
  typename Keys::Sums sums;
  typename Keys::Query q;
  typename Keys::Newest newest(areas.parking);
  for (int item = mine.begin;;) {
    sequence = tile.sequence;
    const int end = min(tile.end, mine.end);
    const T* q_rows =
        static_cast<const T*>(p.q) +
        (int64_t{tile.sequence} * heads_of_row<kMakes>(p) + tile.kv_head * group) * kDim;
    bool has_newest = false;
    if constexpr (kMakes) {
      has_newest = end == tile.end && tile.length > 0 &&
                   (by_warp || (tile.length - 1) % 64 / kWarpKeys == warp);
      const float* cos_sin = p.making.cos_sin + int64_t{tile.sequence} * kDim;
      typename Keys::Raw raw;
      if (has_newest) raw.load(p, tile, lane);
      q.make(q_rows, p.making, cos_sin, group, lane);
      if (has_newest) newest.make(p, raw, tile, cos_sin, lane);
    } else {
      q.load(q_rows, group, lane);
    }
    const float scale_log2 = p.scale_log2 * q.unit;
    sums.clear();
    // Keys are numbered from the first of the 16 that this warp has of the item.
    int key0 = ((tile.first_item + item - tile.begin) << shift) + (by_warp ? 0 : warp * kWarpKeys);
    for (; item < end; ++item, key0 += 1 << shift) {
      const int ahead = item + p.stages - 1;
      if (ahead < mine.end) copy(ahead);
      cp_async_commit();
      wait_stages(p.stages - 1);
      __syncwarp();
      if constexpr (kMakes) {
        if (has_newest && item + 1 == end) {
          newest.put(ring + stage_out * Keys::kStageBytes, (tile.length - 1) % kWarpKeys, lane);
          __syncwarp();
        }
      }
      sums.add(q, ring + stage_out * Keys::kStageBytes, at, scale_log2, tile.first_key - key0,
               tile.length - key0);
      stage_out = stage_out + 1 == p.stages ? 0 : stage_out + 1;
      __syncwarp();
    }
    sums.finish(q);
    if (by_warp) {
      finish_whole<T, kDim>(p, areas, tile, sums, warp, lane);
    } else {
      gather_warps<kDim>(p, areas, sums, warp, lane);
      finish_tile<T, kDim>(p, areas, shared, plan, tile, mine);
    }
    if (item == mine.end) return;
    tile = tile_of(p, areas, shift, sequence, item);
  }
}

}  // namespace treadle::cuda::decode
