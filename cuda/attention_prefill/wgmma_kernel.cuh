// The sm_90a prefill kernel: one producer warp that moves Q, K and V by TMA and two consumer
// warpgroups of 64 query rows each, over persistent blocks of threads that draw tiles from a
// counter.
//
// A tile is 128 query tokens of one head. Key blocks of Layout::kKeys are visited from the last to
// the first, so that the masked ones come first. While a consumer computes the softmax of one
// block, the other consumer's products run: the two take turns at issuing (named barriers kTurn,
// kTurn + 1).
//
// How K and V come to their stages is in wgmma_pages_16bit.cuh and wgmma_pages_int8.cuh.
#pragma once

#include <type_traits>

#include "attention_prefill/wgmma_consumer.cuh"
#include "attention_prefill/wgmma_pages_16bit.cuh"
#include "attention_prefill/wgmma_pages_int8.cuh"

namespace treadle::cuda::prefill {

/// One thread: draws tiles and keeps the stages filled, with int8 the staging area.
template <int kDim, bool kInt8>
__device__ __forceinline__ void produce(const Params& p, const CUtensorMap* q_map,
                                        const CUtensorMap* kv_map, uint8_t* shared,
                                        const Barriers& bars, int total) {
  using L = Layout<kDim, kInt8>;
  const uint32_t base = shared_address(shared);
  const auto* starts = reinterpret_cast<const int32_t*>(shared + L::kStarts);
  auto* slot = reinterpret_cast<TileInfo*>(shared + L::kTile);
  const int group = p.heads / p.kv_heads;
  std::conditional_t<kInt8, PageLoaderInt8<kDim>, PageLoader16Bit<kDim>> pages;
  int phase = 0;
  int item = atomicAdd(p.counters, 1);
  for (;;) {
    int sequence = 0;
    const TileInfo t = tile_info<kRows, L::kKeys>(p, starts, total, item, &sequence);
    mbarrier_wait(bars.tile_empty(), phase ^ 1);
    *slot = t;
    mbarrier_arrive(bars.tile_full());
    if (t.done != 0) break;
    const int next_item = atomicAdd(p.counters, 1);

    const int32_t* table = p.block_tables + int64_t{sequence} * p.block_table_stride;
    const int kv_head = t.head / group;
    auto load = [&](int kv, int block) {
      pages.load(p, kv_map, base, bars, table, t.context_len, kv_head, kv, block);
    };
    load(0, t.key_end - 1);
    mbarrier_wait(bars.q_empty(), phase ^ 1);
    mbarrier_expect(bars.q_full(), L::kQBytes);
#pragma unroll
    for (int h = 0; h < L::kHalves; ++h) {
      tma_load(base + h * L::kQHalf, q_map, t.head * kDim + h * 64, t.first_token, bars.q_full());
    }
    for (int block = t.key_end - 2; block >= t.key_begin; --block) {
      load(0, block);
      load(1, block + 1);
    }
    load(1, t.key_begin);
    item = next_item;
    phase ^= 1;
  }
  // The last block of threads to finish leaves the counters at zero for the next launch.
  __threadfence();
  if (atomicAdd(p.counters + 1, 1) == static_cast<int>(gridDim.x) - 1) {
    p.counters[0] = 0;
    p.counters[1] = 0;
  }
}

template <class T, int kDim, bool kInt8>
__global__ void __launch_bounds__(Groups<kDim, kInt8>::kThreads, 1)
    attention_prefill_wgmma_kernel(const __grid_constant__ Params p,
                                   const __grid_constant__ CUtensorMap q_map,
                                   const __grid_constant__ CUtensorMap kv_map) {
  using L = Layout<kDim, kInt8>;
  using G = Groups<kDim, kInt8>;
  extern __shared__ __align__(1024) uint8_t shared[];
  const Barriers bars{shared_address(shared) + L::kBarriers};
  // One value for the whole warp, so that role branches are uniform.
  const int group = __shfl_sync(0xffffffffU, static_cast<int>(threadIdx.x) / kGroupThreads, 0);
  if (threadIdx.x == 0) {
    bars.init<kDim, kInt8>();
    tma_prefetch_map(&q_map);
    tma_prefetch_map(&kv_map);
  }
  __syncthreads();
  grid_dependency_wait();
  grid_dependency_launch();

  if (group == 0) {
    registers_decrease<G::kProducerRegisters>();
    if (threadIdx.x < 32) {
      const int total =
          plan_tiles<kRows>(p, reinterpret_cast<int32_t*>(shared + L::kStarts), threadIdx.x);
      if (threadIdx.x == 0) produce<kDim, kInt8>(p, &q_map, &kv_map, shared, bars, total);
    } else if constexpr (kInt8 && !G::kConverter) {
      convert<T, kDim>(shared, bars, static_cast<int>(threadIdx.x) - 32);
    }
  } else if (G::kConverter && group == 1) {
    if constexpr (G::kConverter) {
      registers_decrease<G::kConverterRegisters>();
      convert<T, kDim>(shared, bars, static_cast<int>(threadIdx.x) - kGroupThreads);
    }
  } else {
    registers_increase<G::kConsumerRegisters>();
    const int thread = threadIdx.x % kGroupThreads;
    const int consumer = group - G::kFirstConsumer;
    Consumer<T, kDim, kInt8> c{p, bars, shared, consumer, thread, thread / 32, thread % 32};
    if (consumer == 1) named_arrive(kTurn, 2 * kGroupThreads);
    const auto* slot = reinterpret_cast<const TileInfo*>(shared + L::kTile);
    for (int phase = 0;; phase ^= 1) {
      mbarrier_wait(bars.tile_full(), phase);
      const TileInfo t = *slot;
      mbarrier_arrive(bars.tile_empty());
      if (t.done != 0) break;
      c.tile(t, phase);
    }
  }
}

}  // namespace treadle::cuda::prefill
