// What a thread block of the products with 4-bit weights computes (sm_90a).
#pragma once

#include "linear/int4_wgmma_plan.h"

namespace treadle::cuda::int4::wgmma {

/// What a thread block computes, one after the other: the steps [k_begin, k_end) of a tile. `part`
/// is -1 for all steps of a tile; else a number of those that share it, with Plan::cut 0 for the
/// first steps and 1 for the last.
struct Segment {
  int tile, k_begin, k_end, part;

  __device__ __forceinline__ explicit Segment(const Plan& plan)
      : tile(static_cast<int>(blockIdx.x)),
        k_begin(0),
        k_end(plan.k_blocks),
        part(-1),
        end_(plan.tiles) {
    if (plan.cut > 0) {
      cut(plan);
    } else if (tile >= plan.whole) {
      share(plan);
    }
  }
  __device__ __forceinline__ bool valid(const Plan& /*plan*/) const { return tile < end_; }
  __device__ __forceinline__ void next(const Plan& plan) {
    if (plan.cut > 0) {
      ++tile;
      return;
    }
    tile = part >= 0 ? end_ : tile + plan.blocks;
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
  /// The thread blocks with the last steps come first, as the others wait for them.
  __device__ __forceinline__ void cut(const Plan& plan) {
    const int helpers = plan.blocks - plan.tiles;
    const int helper = tile;
    if (helper < helpers) {
      part = 1;
      k_begin = plan.cut;
      tile = plan.tiles * helper / helpers;
      end_ = plan.tiles * (helper + 1) / helpers;
    } else {
      part = 0;
      k_end = plan.cut;
      tile -= helpers;
      end_ = tile + 1;
    }
  }

  int end_;
};

}  // namespace treadle::cuda::int4::wgmma
