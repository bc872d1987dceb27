// Who computes what in the decode kernel.
#pragma once

#include <cstdint>

#include "attention_decode/params.h"
#include "common/ptx.cuh"

namespace treadle::cuda::decode {

/// The dynamic shared memory after the rings of stages.
struct Shared {
  float* merge;      // [4 warps][group][head_dim], or the parts' weights [group][grid]
  float* stats;      // [4][16][2]
  int32_t* starts;   // [num_decode + 1] first item of each sequence
  int32_t* length;   // [num_decode]
  uint8_t* parking;  // kParkingBytes, of the newest keys and values of int8

  __device__ Shared(const Params& p, uint8_t* after_rings, int dim) {
    const int group = p.heads / p.kv_heads;
    merge = reinterpret_cast<float*>(after_rings);
    stats = merge + merge_floats(group, dim, gridDim.x);
    starts = reinterpret_cast<int32_t*>(stats + kWarps * 16 * 2);
    length = starts + p.num_decode + 1;
    parking = reinterpret_cast<uint8_t*>(starts + (2 * p.num_decode + 4) / 4 * 4);
  }
};

/// Items, and who has them. A tile is the items of one sequence and KV head.
struct Plan {
  int total;
  int owners;      // each has an equal stretch of the items
  int each, more;  // total / owners, total % owners
  // An item has 1 << shift keys: 64, owned by a thread block whose warps take 16 each, or 16, owned
  // by a warp. In the latter case tiles are not cut: each goes to the owner that has its middle.
  int shift;

  __device__ bool by_warp() const { return shift == kPartShift; }
};

struct Stretch {
  int begin, end;
};

/// Owner b's items: the first `more` owners have one more; who is no owner has none.
__device__ __forceinline__ Stretch stretch_of(const Plan& plan, int b) {
  const int begin = min(b * plan.each + min(b, plan.more), plan.total);
  return {begin, min(begin + plan.each + (b < plan.more ? 1 : 0), plan.total)};
}
__device__ __forceinline__ int owner_of(const Plan& plan, int item) {
  const int cut = plan.more * (plan.each + 1);
  const bool longer = item < cut;
  const auto from = static_cast<unsigned>(longer ? item : item - cut);
  const auto each = static_cast<unsigned>(longer ? plan.each + 1 : plan.each);
  return static_cast<int>(from / each) + (longer ? 0 : plan.more);
}

__device__ __forceinline__ int first_key_of(int length, int window) {
  return window > 0 ? max(0, length - window) : 0;
}

/// Items of a sequence for one head. One without keys has an item that writes its zeros.
__device__ __forceinline__ int items_of(const Params& p, int length, int shift) {
  return max(1, ((length + (1 << shift) - 1) >> shift) - (first_key_of(length, p.window) >> shift));
}

/// Where warps may own tiles: what pays depends on the pool's type, because int8 needs all warps at
/// work.
struct WholeTiles {
  int most_parts;  // 16 keys each, of a tile
  int most_share;  // parts for each warp of the grid
};

/// Whether warps own tiles: short ones of about one length, enough of them, and not so many that
/// what is gained at the start and the end no longer counts.
__device__ __forceinline__ bool warps_own(WholeTiles limit, int longest, int total, int owners,
                                          int warps) {
  // A warp takes at least as long for 16 keys as memory takes to deliver these many parts; and
  // tiles that thread blocks share cost about so many such steps more.
  constexpr int kPartsInStep = 384;
  constexpr int kStepsGained = 7;
  return longest <= limit.most_parts && total <= limit.most_share * warps &&
         longest <= total / kPartsInStep + kStepsGained &&
         int64_t{longest} * owners * 2 <= int64_t{total} * 5;
}

/// Chooses the plan, which goes to shared memory; fills starts and length. Each thread has a run of
/// sequences.
__device__ inline void build_plan(const Params& p, const Shared& s, WholeTiles limit,
                                  Plan& shared_plan) {
  struct Sums {
    int parts, blocks, longest;  // items of 16 keys, of 64 keys, most of 16 in a tile
  };
  // Aligned, or a wide load of it reads the end of the plan, too, which racecheck sees.
  __shared__ __align__(16) Sums warps[kWarps];
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int run = (p.num_decode + kThreads - 1) / kThreads;
  const int first = min(static_cast<int>(threadIdx.x) * run, p.num_decode);
  const int last = min(first + run, p.num_decode);
  Sums own = {};
  constexpr int kAtOnce = 4;  // lengths whose loads wait together
  for (int i = first; i < last; i += kAtOnce) {
    int length[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) length[j] = p.context_len[min(i + j, last - 1)];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (i + j >= last) break;
      s.length[i + j] = length[j];
      const int parts = items_of(p, length[j], kPartShift);
      own.parts += parts;
      own.blocks += items_of(p, length[j], kBlockShift);
      own.longest = max(own.longest, parts);
    }
  }
  Sums upto = own;
  const int busy = (p.num_decode + run - 1) / run - warp * 32;  // lanes with sequences, or more
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    if (d >= busy) break;
    const int parts = __shfl_up_sync(0xffffffffU, upto.parts, d);
    const int blocks = __shfl_up_sync(0xffffffffU, upto.blocks, d);
    if (lane >= d) {
      upto.parts += parts;
      upto.blocks += blocks;
    }
  }
  upto.longest = __reduce_max_sync(0xffffffffU, own.longest);
  if (lane == min(max(busy, 1), 32) - 1) warps[warp] = upto;
  __syncthreads();
  Sums all = {};
  int parts = upto.parts - own.parts;  // of the sequences before this thread's
  int blocks = upto.blocks - own.blocks;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    const Sums other = warps[w];
    if (w < warp) {
      parts += other.parts;
      blocks += other.blocks;
    }
    all.parts += other.parts;
    all.blocks += other.blocks;
    all.longest = max(all.longest, other.longest);
  }

  Plan plan;
  // As few owners as have equally many tiles: with one more each, some would work on alone.
  const int tiles = p.num_decode * p.kv_heads;
  const int grid_warps = static_cast<int>(gridDim.x) * kWarps;
  const int tiles_each = (tiles + grid_warps - 1) / grid_warps;
  plan.owners = (tiles + tiles_each - 1) / tiles_each;
  plan.total = all.parts * p.kv_heads;
  const bool by_warp = warps_own(limit, all.longest, plan.total, plan.owners, grid_warps);
  plan.shift = by_warp ? kPartShift : kBlockShift;
  if (!by_warp) {
    plan.total = all.blocks * p.kv_heads;
    plan.owners =
        plan.total <= 4 * static_cast<int>(gridDim.x) ? p.few_owners : static_cast<int>(gridDim.x);
  }
  plan.each = plan.total / plan.owners;
  plan.more = plan.total % plan.owners;

  int start = (by_warp ? parts : blocks) * p.kv_heads;
  for (int i = first; i < last; ++i) {
    s.starts[i] = start;
    start += items_of(p, s.length[i], plan.shift) * p.kv_heads;
  }
  if (threadIdx.x == 0) {
    s.starts[p.num_decode] = plan.total;
    shared_plan = plan;
  }
  __syncthreads();
}

/// The sequence that has an item. By all lanes of a warp, for the same item.
__device__ __forceinline__ int find_sequence(const Params& p, const Shared& s, int item) {
  const int lane = threadIdx.x & 31;
  int low = 0;  // starts[low] <= item
  int span = p.num_decode;
  while (span > 1) {
    const int step = (span + 31) / 32;
    const int probe = lane * step;
    const bool reached = probe < span && s.starts[low + probe] <= item;
    const int at = (__popc(__ballot_sync(0xffffffffU, reached)) - 1) * step;
    low += at;
    span = min(step, span - at);
  }
  return low;
}

struct Tile {
  int sequence, kv_head;
  int begin, end;  // items
  int first_item;  // of the sequence: its keys are from first_item << shift on
  int first_key, length;
};

/// The tile of an item that is not before sequence `near`, and not long after it.
__device__ __forceinline__ Tile tile_of(const Params& p, const Shared& s, int shift, int near,
                                        int item) {
  Tile t;
  t.sequence = near;
  while (s.starts[t.sequence + 1] <= item) ++t.sequence;
  const int start = s.starts[t.sequence];
  t.length = s.length[t.sequence];
  const auto items = static_cast<unsigned>(items_of(p, t.length, shift));
  t.kv_head = static_cast<int>(static_cast<unsigned>(item - start) / items);
  t.begin = start + t.kv_head * static_cast<int>(items);
  t.end = t.begin + static_cast<int>(items);
  t.first_key = first_key_of(t.length, p.window);
  t.first_item = t.first_key >> shift;
  return t;
}

/// The whole tiles whose middles lie in a warp's equal stretch, from `near` on. By all lanes.
__device__ __forceinline__ Stretch whole_tiles(const Params& p, const Shared& s, const Plan& plan,
                                               int near, Stretch equal) {
  // Half of the lanes move each end.
  int item = (threadIdx.x & 31) < 16 ? equal.begin : equal.end;
  if (item < plan.total) {
    const Tile t = tile_of(p, s, plan.shift, near, item);
    item = 2 * (item - t.begin) <= t.end - t.begin ? t.begin : t.end;
  }
  return {__shfl_sync(0xffffffffU, item, 0), __shfl_sync(0xffffffffU, item, 16)};
}

/// Where the keys are that a warp has of an item.
template <class Keys>
struct ItemPage {
  typename Keys::Place place;
  // How many of the 16 are in the pool, which 16 of the block they are, and whether an operation
  // right before this one may have written to the block, which is the sequence's newest.
  int facts;

  static __device__ int pack(int keys, int part, bool newest) {
    return keys | part << 8 | (newest ? 1 << 16 : 0);
  }
};

/// kMakes: the newest key is not in the pool, and the others have been there since the last step.
template <class Keys, bool kMakes>
__device__ __forceinline__ ItemPage<Keys> page_of(const Params& p, const Shared& s, int shift,
                                                  int near, int item, int end) {
  if (item >= end) return {{}, 0};
  const Tile t = tile_of(p, s, shift, near, item);
  const int key = ((t.first_item + item - t.begin) << shift) +
                  (shift == kPartShift ? 0 : static_cast<int>(threadIdx.x / 32) * kWarpKeys);
  if (key >= t.length) return {{}, 0};
  const int block = key / 64;
  const int id = p.block_tables[int64_t{t.sequence} * p.block_table_stride + block];
  const int keys = kMakes ? min(t.length - 1 - key, kWarpKeys) : min(t.length - key, kWarpKeys);
  return {
      Keys::place_of(p, id, t.kv_head),
      ItemPage<Keys>::pack(keys, key % 64 / kWarpKeys, !kMakes && block == (t.length - 1) / 64)};
}

}  // namespace treadle::cuda::decode
