// How the sums of warps, and parts of a tile that several thread blocks have, become one result.
#pragma once

#include <cstdint>

#include "attention_decode/plan.cuh"
#include "common/ptx.cuh"

namespace treadle::cuda::decode {

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

/// Where a row of sums in shared memory has a column: four neighbours stay together, and neither
/// kind of write has many threads at one bank.
template <int kDim>
__device__ __forceinline__ int merge_column(int row, int column) {
  return column ^ (row & (kDim % 32 == 0 ? 3 : 1)) << 3 ^ (column >> 5 & 3) << 2;
}
template <int kDim>
__device__ __forceinline__ float4 merged4(const float* rows, int row, int column) {
  return *reinterpret_cast<const float4*>(rows + row * kDim + merge_column<kDim>(row, column));
}

/// All threads: leaves the four warps' sums in areas.merge and their statistics in areas.stats.
template <int kDim, class Sums>
__device__ __forceinline__ void gather_warps(const Params& p, const Shared& s, const Sums& sums,
                                             int warp, int lane) {
  const int group = p.heads / p.kv_heads;
  float* stats = s.stats;  // [4 warps][16 rows][max, sum]
  __syncthreads();         // the areas are free again
#pragma unroll
  for (int i = 0; i < Sums::kRows; ++i) {
    const int r = Sums::row_of(i, lane);
    if (Sums::tells(lane)) {
      stats[(warp * 16 + r) * 2] = sums.max[i];
      stats[(warp * 16 + r) * 2 + 1] = sums.sum[i];
    }
    if (r < group) sums.write(i, 1.0F, s.merge + warp * group * kDim, lane);
  }
  __syncthreads();
}

/// Who has left parts of a tile, in order.
struct Owners {
  int first, count;
  int first_slot;  // of the workspace

  __device__ Owners(const Plan& plan, const Tile& tile) {
    first = owner_of(plan, tile.begin);
    count = owner_of(plan, tile.end - 1) - first + 1;
    // An owner's second slot holds a tile that starts after its stretch does: only the first owner
    // can have that.
    first_slot = 2 * first + (stretch_of(plan, first).begin < tile.begin ? 1 : 0);
  }
  __device__ int slot_of(int part) const { return part == 0 ? first_slot : 2 * (first + part); }
};

constexpr int kMostShift = 7;
static_assert(1 << kMostShift == kThreads);

/// All threads: adds the parts of a tile and writes the result. They come by way of `ring`, which
/// has room for 1 << shift quads of each, one a thread; where shift is negative, one after the
/// other.
template <class T, int kDim>
__device__ __forceinline__ void combine_parts(const Params& p, const Shared& s, uint8_t* ring,
                                              int shift, const Owners& owners, int group, T* out) {
  const int quads = group * kDim / 4;
  const int lane = threadIdx.x & 31;
  const auto* stats = reinterpret_cast<const float2*>(p.part_stats);
  auto stat_of = [&](int part, int r) {
    return part < owners.count ? __ldcg(stats + owners.slot_of(part) * group + r)
                               : make_float2(-INFINITY, 0.0F);
  };
  // Loads before the copies, which take longer to issue.
  const int first_row = threadIdx.x / 32;
  const float2 early[2] = {stat_of(lane, min(first_row, group - 1)),
                           stat_of(lane + 32, min(first_row, group - 1))};

  const auto* parts = reinterpret_cast<const float4*>(p.parts);
  auto stage = [&](int begin) {
    constexpr int kAtOnce = 8;
    const int e = begin + (threadIdx.x & ((1 << shift) - 1));
    const int part = static_cast<int>(threadIdx.x) >> shift;  // then every kThreads >> shift
    const int count =
        e < quads ? (owners.count - part + (kThreads >> shift) - 1) >> (kMostShift - shift) : 0;
    const int64_t step = int64_t{2 * (kThreads >> shift)} * quads;
    const float4* from = parts + int64_t{owners.slot_of(part)} * quads + e;
    const float4* next = parts + int64_t{2 * (owners.first + part)} * quads + e + step;
    uint32_t to = shared_address(ring) + threadIdx.x * 16;
    for (int i = 0; i < count; i += kAtOnce, to += kAtOnce * kThreads * 16) {
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        if (i + k < count) cp_async_16(to + k * kThreads * 16, from, true);
        from = next;
        next += step;
      }
    }
    cp_async_commit();
  };
  if (shift >= 0) stage(0);

  // One warp a row: weight of each part, then the sum of all.
  float* weights = s.merge;  // [group][owners + 1]
  for (int r = first_row; r < group; r += kWarps) {
    float* weight = weights + r * (owners.count + 1);
    const float2 own[2] = {r == first_row ? early[0] : stat_of(lane, r),
                           r == first_row ? early[1] : stat_of(lane + 32, r)};
    float top = fmaxf(own[0].x, own[1].x);
    for (int part = lane + 64; part < owners.count; part += 32) {
      top = fmaxf(top, stat_of(part, r).x);
    }
#pragma unroll
    for (int d = 16; d > 0; d /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffU, top, d));
    float l = 0.0F;
    auto weigh = [&](int part, float2 stat) {
      if (part >= owners.count) return;
      const float w = top == -INFINITY ? 0.0F : exp2_approx((stat.x - top) * p.scale_log2);
      weight[part] = w;
      l += w * stat.y;
    };
    weigh(lane, own[0]);
    weigh(lane + 32, own[1]);
    for (int part = lane + 64; part < owners.count; part += 32) weigh(part, stat_of(part, r));
#pragma unroll
    for (int d = 16; d > 0; d /= 2) l += __shfl_xor_sync(0xffffffffU, l, d);
    if (lane == 0) weight[owners.count] = l;
  }

  auto write = [&](int e, auto part_at) {
    const float* weight = weights + (e * 4 / kDim) * (owners.count + 1);
    float4 sum = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
#pragma unroll 8
    for (int part = 0; part < owners.count; ++part) add4(sum, weight[part], part_at(part));
    const float l = weight[owners.count];
    const float inverse = l > 0.0F ? 1.0F / l : 0.0F;
    store4(out + e * 4,
           make_float4(sum.x * inverse, sum.y * inverse, sum.z * inverse, sum.w * inverse));
  };
  if (shift < 0) {
    __syncthreads();
    for (int e = threadIdx.x; e < quads; e += kThreads) {
      write(e, [&](int part) { return __ldcg(parts + int64_t{owners.slot_of(part)} * quads + e); });
    }
    return;
  }
  for (int begin = 0; begin < quads; begin += 1 << shift) {
    if (begin > 0) {
      __syncthreads();
      stage(begin);
    }
    cp_async_wait<0>();
    __syncthreads();
    const int at = threadIdx.x;
    if (at < 1 << shift && begin + at < quads) {
      const auto* staged = reinterpret_cast<const float4*>(ring) + at;
      write(begin + at, [&](int part) { return staged[part << shift]; });
    }
  }
}

/// All threads, after gather_warps(): writes a tile, or leaves its part and, as the last of its
/// owners, writes the sum of all. `ring` is all shared memory before the areas.
template <class T, int kDim>
__device__ __forceinline__ void finish_tile(const Params& p, const Shared& s, uint8_t* ring,
                                            const Plan& plan, const Tile& tile, Stretch mine) {
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
      const float factor = top == -INFINITY ? 0.0F : exp2_approx((stat[0] - top) * p.scale_log2);
      l += stat[1] * factor;
      add4(sum, factor, merged4<kDim>(s.merge + w * group * kDim, r, e * 4 % kDim));
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
  // Computed while the parts are on their way.
  const Owners owners(plan, tile);
  // After its last tile a thread block awaits nothing more in the rings.
  const int bytes = static_cast<int>(reinterpret_cast<uint8_t*>(s.merge) - ring);
  int shift = tile.end >= mine.end ? kMostShift : -1;
  while (shift >= 0 && owners.count * 16 << shift > bytes) --shift;
  __syncthreads();
  int32_t* counter = p.counters + tile.sequence * p.kv_heads + tile.kv_head;
  if (threadIdx.x == 0) {
    // With the barrier before it: all threads' parts are visible.
    last = atomic_increment_acq_rel(counter) == owners.count - 1 ? 1 : 0;
    if (last != 0) *counter = 0;
  }
  __syncthreads();
  if (last != 0) combine_parts<T, kDim>(p, s, ring, shift, owners, group, out);
}

/// One warp that has had all of a tile: adds and writes its sums, by way of its part of
/// areas.merge.
template <class T, int kDim, class Sums>
__device__ __forceinline__ void finish_whole(const Params& p, const Shared& s, const Tile& tile,
                                             const Sums& sums, int warp, int lane) {
  const int group = p.heads / p.kv_heads;
  float* rows = s.merge + warp * group * kDim;
#pragma unroll
  for (int i = 0; i < Sums::kRows; ++i) {
    const int r = Sums::row_of(i, lane);
    if (r < group) {
      sums.write(i, sums.sum[i] > 0.0F ? 1.0F / sums.sum[i] : 0.0F, rows, lane);
    }
  }
  __syncwarp();
  T* out =
      static_cast<T*>(p.out) + (int64_t{tile.sequence} * p.heads + tile.kv_head * group) * kDim;
  for (int e = lane; e < group * kDim / 4; e += 32) {
    store4(out + e * 4, merged4<kDim>(rows, e * 4 / kDim, e * 4 % kDim));
  }
  __syncwarp();
}

}  // namespace treadle::cuda::decode
