// Who computes what in the decode kernel, and how parts of a tile become one result.
#pragma once

#include <cstdint>

#include "attention_decode/params.h"
#include "common/ptx.cuh"

namespace treadle::cuda::decode {

/// The dynamic shared memory after the rings of stages.
struct Shared {
  float* merge;     // [4 warps][group][head_dim], or the parts' weights [group][grid]
  float* stats;     // [4][16][2]
  int32_t* starts;  // [num_decode + 1] first item of each sequence
  int32_t* length;  // [num_decode]

  __device__ Shared(const Params& p, uint8_t* after_rings, int dim) {
    const int group = p.heads / p.kv_heads;
    merge = reinterpret_cast<float*>(after_rings);
    stats = merge + merge_floats(group, dim, gridDim.x);
    starts = reinterpret_cast<int32_t*>(stats + kWarps * 16 * 2);
    length = starts + p.num_decode + 1;
  }
};

struct Stretch {
  int begin, end;
};

/// Thread block b's items: the first total % grid blocks have one more.
__device__ __forceinline__ Stretch stretch_of(int total, int b, int grid) {
  const int each = total / grid;
  const int more = total % grid;
  const int begin = b * each + min(b, more);
  return {begin, begin + each + (b < more ? 1 : 0)};
}
__device__ __forceinline__ int owner_of(int item, int total, int grid) {
  const int each = total / grid;
  const int more = total % grid;
  const int cut = more * (each + 1);
  return item < cut ? item / (each + 1) : more + (item - cut) / each;
}

__device__ __forceinline__ int first_key_of(int length, int window) {
  return window > 0 ? max(0, length - window) : 0;
}

/// Fills starts and length; returns the number of items. A sequence without keys has one item for
/// each head, which writes its zeros.
__device__ inline int build_plan(const Params& p, const Shared& s) {
  __shared__ int warp_sums[kWarps];
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  int before = 0;
  for (int base = 0; base < p.num_decode; base += kThreads) {
    const int i = base + threadIdx.x;
    int items = 0;
    if (i < p.num_decode) {
      const int length = p.context_len[i];
      s.length[i] = length;
      const int blocks = (length + 63) / 64 - first_key_of(length, p.window) / 64;
      items = max(1, blocks) * p.kv_heads;
    }
    int sum = items;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const int other = __shfl_up_sync(0xffffffffU, sum, d);
      if (lane >= d) sum += other;
    }
    if (lane == 31) warp_sums[warp] = sum;
    __syncthreads();
    int offset = before;
    int all = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) offset += warp_sums[w];
      all += warp_sums[w];
    }
    if (i < p.num_decode) s.starts[i] = offset + sum - items;
    before += all;
    __syncthreads();
  }
  if (threadIdx.x == 0) s.starts[p.num_decode] = before;
  __syncthreads();
  return before;
}

__device__ __forceinline__ int sequence_of(const Params& p, const Shared& s, int item) {
  int low = 0;
  int high = p.num_decode;  // starts[low] <= item < starts[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (s.starts[middle] <= item ? low : high) = middle;
  }
  return low;
}

struct Tile {
  int sequence, kv_head;
  int begin, end;  // items
  int first_block, first_key, length;
};

__device__ __forceinline__ Tile tile_of(const Params& p, const Shared& s, int item) {
  Tile t;
  t.sequence = sequence_of(p, s, item);
  const int start = s.starts[t.sequence];
  const int blocks = (s.starts[t.sequence + 1] - start) / p.kv_heads;
  t.kv_head = (item - start) / blocks;
  t.begin = start + t.kv_head * blocks;
  t.end = t.begin + blocks;
  t.length = s.length[t.sequence];
  t.first_key = first_key_of(t.length, p.window);
  t.first_block = t.first_key / 64;
  return t;
}

/// Where an item's K and V are, and how many of its keys exist.
template <class Keys>
struct ItemPage {
  typename Keys::Place place;
  int keys;
  int newest;  // 1 when it holds the sequence's newest key
};

template <class Keys>
__device__ __forceinline__ ItemPage<Keys> page_of(const Params& p, const Shared& s, int item,
                                                  int end) {
  if (item >= end) return {{}, 0, 0};
  const Tile t = tile_of(p, s, item);
  const int block = t.first_block + item - t.begin;
  const int keys = t.length - block * 64;
  if (keys <= 0) return {{}, 0, 0};
  const int id = p.block_tables[int64_t{t.sequence} * p.block_table_stride + block];
  return {Keys::place_of(p, id, t.kv_head), min(keys, 64), item + 1 == t.end ? 1 : 0};
}

template <class T>
__device__ __forceinline__ void store4(T* to, float4 x) {
  *reinterpret_cast<uint2*>(to) = make_uint2(pack2<T>(x.x, x.y), pack2<T>(x.z, x.w));
}

__device__ __forceinline__ void add4(float4& sum, float w, float4 x) {
  sum.x += w * x.x;
  sum.y += w * x.y;
  sum.z += w * x.z;
  sum.w += w * x.w;
}

/// All threads: the warps' scaled sums lie in areas.merge, their statistics in areas.stats.
template <class T, int kDim>
__device__ __forceinline__ void finish_tile(const Params& p, const Shared& s, const Tile& tile,
                                            Stretch mine, int total) {
  const int group = p.heads / p.kv_heads;
  const int quads = group * kDim / 4;
  T* out =
      static_cast<T*>(p.out) + (int64_t{tile.sequence} * p.heads + tile.kv_head * group) * kDim;
  const bool whole = tile.begin >= mine.begin && tile.end <= mine.end;
  const int slot = 2 * blockIdx.x + (mine.begin < tile.begin ? 1 : 0);

  for (int e = threadIdx.x; e < quads; e += kThreads) {
    const int r = e * 4 / kDim;
    float top = s.stats[r * 2];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) top = fmaxf(top, s.stats[(w * 16 + r) * 2]);
    float l = 0.0F;
    float4 sum = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float* stat = s.stats + (w * 16 + r) * 2;
      if (top != -INFINITY) l += stat[1] * exp2_approx((stat[0] - top) * p.scale_log2);
      add4(sum, 1.0F, reinterpret_cast<const float4*>(s.merge + w * group * kDim)[e]);
    }
    if (whole) {
      const float inverse = l > 0.0F ? 1.0F / l : 0.0F;
      store4(out + e * 4,
             make_float4(sum.x * inverse, sum.y * inverse, sum.z * inverse, sum.w * inverse));
    } else {
      __stcg(reinterpret_cast<float4*>(p.parts + int64_t{slot} * group * kDim) + e, sum);
      if (e * 4 % kDim == 0) {
        __stcg(reinterpret_cast<float2*>(p.part_stats) + slot * group + r, make_float2(top, l));
      }
    }
  }
  if (whole) return;

  __shared__ int last;
  __syncthreads();
  const int first_owner = owner_of(tile.begin, total, gridDim.x);
  const int owners = owner_of(tile.end - 1, total, gridDim.x) - first_owner + 1;
  int32_t* counter = p.counters + tile.sequence * p.kv_heads + tile.kv_head;
  if (threadIdx.x == 0) {
    __threadfence();  // with the barrier before it: all threads' parts are visible
    last = atomicAdd(counter, 1) == owners - 1 ? 1 : 0;
    if (last != 0) *counter = 0;
    __threadfence();
  }
  __syncthreads();
  if (last == 0) return;

  // Each owner's second slot holds a tile that starts after its stretch does: only the first owner
  // can have that.
  const int first_slot =
      2 * first_owner + (stretch_of(total, first_owner, gridDim.x).begin < tile.begin ? 1 : 0);
  auto slot_of = [&](int part) { return part == 0 ? first_slot : 2 * (first_owner + part); };

  // The first loads of parts are under way while the weights are computed.
  constexpr int kAhead = 16;
  float4 x[kAhead];
  auto load_parts = [&](int e, int base) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int part = min(base + i, owners - 1);
      x[i] = __ldcg(
          reinterpret_cast<const float4*>(p.parts + int64_t{slot_of(part)} * group * kDim) + e);
    }
  };
  load_parts(min(static_cast<int>(threadIdx.x), quads - 1), 0);

  // One warp a row: weight of each part, then the sum of all.
  float* weights = s.merge;  // [group][owners + 1]
  const int lane = threadIdx.x & 31;
  for (int r = threadIdx.x / 32; r < group; r += kWarps) {
    auto stat_of = [&](int part) {
      return __ldcg(reinterpret_cast<const float2*>(p.part_stats) + slot_of(part) * group + r);
    };
    float* weight = weights + r * (owners + 1);
    const float2 own = lane < owners ? stat_of(lane) : make_float2(-INFINITY, 0.0F);
    float top = own.x;
    for (int part = lane + 32; part < owners; part += 32) top = fmaxf(top, stat_of(part).x);
#pragma unroll
    for (int d = 16; d > 0; d /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffU, top, d));
    float l = 0.0F;
    for (int part = lane; part < owners; part += 32) {
      const float2 stat = part == lane ? own : stat_of(part);
      const float w = top == -INFINITY ? 0.0F : exp2_approx((stat.x - top) * p.scale_log2);
      weight[part] = w;
      l += w * stat.y;
    }
#pragma unroll
    for (int d = 16; d > 0; d /= 2) l += __shfl_xor_sync(0xffffffffU, l, d);
    if (lane == 0) weight[owners] = l;
  }
  __syncthreads();
  for (int e = threadIdx.x; e < quads; e += kThreads) {
    const float* weight = weights + (e * 4 / kDim) * (owners + 1);
    float4 sum = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
    for (int base = 0; base < owners; base += kAhead) {
      if (base > 0 || e >= kThreads) load_parts(e, base);
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (base + i < owners) add4(sum, weight[base + i], x[i]);
      }
    }
    const float l = weight[owners];
    const float inverse = l > 0.0F ? 1.0F / l : 0.0F;
    store4(out + e * 4,
           make_float4(sum.x * inverse, sum.y * inverse, sum.z * inverse, sum.w * inverse));
  }
}

}  // namespace treadle::cuda::decode
