// What becomes of a tile's sums in the products with 4-bit weights (sm_90a): thread blocks that
// share the tile, each with a part of K, exchange them, and each stores some of its tokens.
#pragma once

#include "common/cluster.cuh"
#include "common/ptx.cuh"
#include "linear/int4_segment.cuh"
#include "linear/stream_exchange.cuh"
#include "linear/stream_store.cuh"

namespace treadle::cuda::int4::wgmma {

__device__ __forceinline__ float4 load_shared_floats(uint32_t address) {
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];\n"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(address)
               : "memory");
  return v;
}

/// Of neighbouring groups of 8 tokens the first or the second.
template <int kCount>
__device__ __forceinline__ float4 choose(const float (&sums)[kCount][4], int i, bool second) {
  const float(&a)[4] = sums[2 * i];
  const float(&b)[4] = sums[2 * i + 1];
  return second ? make_float4(b[0], b[1], b[2], b[3]) : make_float4(a[0], a[1], a[2], a[3]);
}

__device__ __forceinline__ void add(float4 a, float4 b, float (&sum)[4]) {
  sum[0] = a.x + b.x;
  sum[1] = a.y + b.y;
  sum[2] = a.z + b.z;
  sum[3] = a.w + b.w;
}

/// Between the two thread blocks of a tile with Plan::cut: the one that has its last steps leaves
/// their sums, the other waits for them.
template <int kConsumers, int kVectors>
__device__ __forceinline__ void leave_tail(const stream::Parts& parts, int tile,
                                           const float (&sums)[kVectors][4]) {
  float4* to =
      reinterpret_cast<float4*>(parts.sums) + size_t(tile) * kVectors * kConsumers + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    to[i * kConsumers] = make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]);
  }
  named_sync(1, kConsumers);
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(parts.counters + tile, 1);
  }
}
template <int kConsumers, int kVectors>
__device__ __forceinline__ void add_tail(const stream::Parts& parts, int tile,
                                         float (&sums)[kVectors][4]) {
  if (threadIdx.x == 0) {
    int* counter = parts.counters + tile;
    wait_for_count(counter, 1);
    *counter = 0;
  }
  named_sync(1, kConsumers);
  const float4* from = reinterpret_cast<const float4*>(parts.sums) +
                       size_t(tile) * kVectors * kConsumers + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const float4 v = __ldcg(from + i * kConsumers);
    sums[i][0] += v.x;
    sums[i][1] += v.y;
    sums[i][2] += v.z;
    sums[i][3] += v.w;
  }
}

/// Stores the sums that a warp has of 16 rows of W from `row` on and kVectors groups of 8 tokens
/// from group `first` of y on; or adds up those of the thread blocks that share the tile, and
/// stores every split-th group from its own number on.
///
/// With kPair thread blocks 0 and 1 of a tile are a cluster, and 2 and 3 if there are four. These
/// exchange by way of `shared`, which has room for half of the sums, and two clusters exchange in
/// L2 what that leaves: a quarter of what four thread blocks would. All threads that do not come
/// here call cluster_sync() twice.
template <class T, class Out, bool kGated, bool kPair, int kConsumers, int kVectors>
__device__ __forceinline__ void store_sums(const stream::Output& out, const stream::Parts& parts,
                                           const Plan& plan, const Segment& s,
                                           float (&acc)[kVectors][4], int row, int first,
                                           uint32_t shared) {
  const int tile = s.tile - plan.whole;
  if (!kPair && plan.cut > 0) {
    if (s.part == 1) return leave_tail<kConsumers>(parts, s.tile, acc);
    add_tail<kConsumers>(parts, s.tile, acc);
    stream::store_chunks<T, Out, kGated>(out, acc, row, first, 1);
  } else if (s.part < 0) {
    stream::store_chunks<T, Out, kGated>(out, acc, row, first, 1);
  } else if constexpr (kPair) {
    const bool odd = s.part % 2 == 1;
    cluster_sync();  // both are done with shared memory
    const uint32_t here = shared + threadIdx.x * 16;
    const uint32_t there = mapped_address(here, odd ? 0 : 1);
#pragma unroll
    for (int i = 0; i < kVectors / 2; ++i) {
      store_cluster(there + i * (kConsumers * 16), choose(acc, i, !odd));
    }
    cluster_sync();
    float sums[kVectors / 2][4];  // of groups first + 2 i + odd
#pragma unroll
    for (int i = 0; i < kVectors / 2; ++i) {
      add(choose(acc, i, odd), load_shared_floats(here + i * (kConsumers * 16)), sums[i]);
    }
    if (plan.split == 2) {
      stream::store_chunks<T, Out, kGated>(out, sums, row, first + s.part, 2);
      return;
    }
    constexpr int kOwn = kVectors / 4;
    const bool upper = s.part >= 2;
    const stream::Exchange<1, kOwn, kOwn, kConsumers> exchange(parts, tile, s.part, 4);
    float own[kOwn][4];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const float4 others = choose(sums, i, !upper);
      own[i][0] = others.x;
      own[i][1] = others.y;
      own[i][2] = others.z;
      own[i][3] = others.w;
    }
    exchange.leave_sums(own, 0);
    exchange.meet();
    const float4* left = reinterpret_cast<const float4*>(parts.sums) +
                         (size_t(tile) * 4 + (s.part ^ 2)) * kOwn * kConsumers + threadIdx.x;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      add(choose(sums, i, upper), __ldcg(left + i * kConsumers), own[i]);
    }
    stream::store_chunks<T, Out, kGated>(out, own, row, first + s.part, 4);
    exchange.part();
  } else {
    const stream::Exchange<1, kVectors, kVectors / 2, kConsumers> exchange(parts, tile, s.part,
                                                                           plan.split);
    exchange.leave_sums(acc, 0);
    exchange.meet();
    float sums[kVectors / 2][4];
    exchange.add_up(sums, 0);
    stream::store_chunks<T, Out, kGated>(out, sums, row, first + s.part, plan.split);
    exchange.part();
  }
}

}  // namespace treadle::cuda::int4::wgmma
