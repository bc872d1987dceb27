// What a thread block of the products with 4-bit weights computes (sm_90a).
#pragma once

#include "linear/int4_wgmma_plan.h"

namespace treadle::cuda::int4::wgmma {

/// What a thread block computes, one after the other: the steps [k_begin, k_end) of a tile.
struct Segment {
  int tile, k_begin, k_end, part;

  __device__ __forceinline__ explicit Segment(const Plan& plan)
      : tile(static_cast<int>(blockIdx.x)), k_begin(0), k_end(plan.k_blocks), part(-1) {
    if (tile >= plan.whole) share(plan);
  }
  __device__ __forceinline__ bool valid(const Plan& plan) const { return tile < plan.tiles; }
  __device__ __forceinline__ void next(const Plan& plan) {
    tile = part >= 0 ? plan.tiles : tile + plan.blocks;
    if (part < 0 && tile >= plan.whole) share(plan);
  }

 private:
  __device__ __forceinline__ void share(const Plan& plan) {
    const auto block = static_cast<int>(blockIdx.x);
    tile = plan.whole + block / plan.split;
    part = block % plan.split;
    k_begin = plan.k_blocks * part / plan.split;
    k_end = plan.k_blocks * (part + 1) / plan.split;
  }
};

}  // namespace treadle::cuda::int4::wgmma
