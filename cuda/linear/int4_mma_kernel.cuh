// The kernel of int4_mma.h, of instructions that every GPU from sm_80 on has: the tensor cores
// multiply 16 rows of W by eight tokens at a time (mma.m16n8k16).
//
// The warps of a thread block have 32 or 64 rows of a tile each and all of its tokens, so that a
// fragment of W is made once and one of x serves several products. A ring of stages in shared
// memory is filled by asynchronous copies: x for all warps, and what each warp needs of W.
//
// A tile whose steps are shared is stored by all thread blocks that share it, if they end it at the
// same time. Else the one that began it waits for the sums of the others, which computed theirs
// before anything else and wait for nobody.
#pragma once

#include "linear/int4_mma_multiply.cuh"
#include "linear/int4_mma_source.cuh"
#include "linear/int4_mma_sums.cuh"

namespace treadle::cuda::int4::mma {

template <class T, int kTokens>
__global__ void __launch_bounds__(Shape<kTokens>::kThreads, register_blocks(kTokens))
    int4_mma_kernel(const __grid_constant__ Args a) {
  using S = Shape<kTokens>;
  extern __shared__ __align__(128) uint8_t shared[];
  grid_dependency_launch();
  const Plan& plan = a.plan;
  const uint32_t ring = shared_address(shared);
  const uint32_t ring_end = ring + plan.stages * S::kStage;
  // This thread block's steps, counted over all tiles.
  const auto block = static_cast<int>(blockIdx.x);
  const int begin = plan.split > 1 ? block / plan.split * plan.steps +
                                         plan.steps * (block % plan.split) / plan.split
                                   : block * plan.each;
  const int end = plan.split > 1 ? block / plan.split * plan.steps +
                                       plan.steps * (block % plan.split + 1) / plan.split
                                 : min(begin + plan.each, plan.tiles * plan.steps);
  int tile = begin / plan.steps;
  int k = begin - tile * plan.steps;
  int k_begin = k;

  // The first stages; each commits one group for W and one for x.
  const int ahead = plan.stages - 1;
  Source<T, S> source(a, tile, k);
#pragma unroll 1
  for (int i = 0; i < ahead; ++i) {
    source.fetch_w(ring + i * S::kStage, begin + i < end);
    source.next();
    cp_async_commit();
  }
  grid_dependency_wait();  // W is constant; x and y are not
  source.go_to(tile, k);
#pragma unroll 1
  for (int i = 0; i < ahead; ++i) {
    source.fetch_x(ring + i * S::kStage, begin + i < end);
    source.next();
    cp_async_commit();
  }

  Multiplier<T, S> sums(a);
  uint32_t current = ring;
  uint32_t free = ring + ahead * S::kStage;
#pragma unroll 1
  for (int step = begin; step < end; ++step) {
    wait_for_copies(plan.stages);
    __syncthreads();  // the stage is there for all warps, and all are done with the one before it
    const bool live = step + ahead < end;
    sums.add(current, k == k_begin, k * kDepth, [&] {
      source.fetch_w(free, live);
      source.fetch_x(free, live);
      cp_async_commit();
    });
    source.next();
    free = current;
    current += S::kStage;
    if (current == ring_end) current = ring;
    ++k;
    if (k == plan.steps || step + 1 == end) {
      finish<T, S>(a, tile, k_begin, k, sums.acc);
      sums.clear();
      ++tile;
      k = 0;
      k_begin = 0;
    }
  }
}

}  // namespace treadle::cuda::int4::mma
