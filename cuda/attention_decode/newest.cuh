// The newest key and value of a sequence, made from the projection by the warp that has them. No
// other reads them in this launch: the warp keeps them until their stage is in place.
#pragma once

#include <cstdint>

#include "attention_decode/plan.cuh"
#include "common/head.cuh"

namespace treadle::cuda::decode {

/// Eight columns a lane: of K with the first head_lanes() lanes and of V with the next, or of one
/// after the other with all.
template <class T, int kDim>
struct NewestRaw {
  static constexpr int kLanes = head_lanes(kDim);
  static constexpr int kPasses = kLanes == 32 ? 2 : 1;
  Vec8<T> x[kPasses];
  int32_t block;  // the pool's, or -1

  /// 0: K, 1: V; more: the lane is idle.
  static __device__ __forceinline__ int part_of(int pass, int lane) {
    return kPasses == 2 ? pass : lane / kLanes;
  }
  static __device__ __forceinline__ int eight_of(int lane) { return lane % kLanes; }
  static __device__ __forceinline__ bool here(int pass, int lane) {
    return part_of(pass, lane) < 2 && eight_of(lane) * 8 < kDim;
  }

  /// Loads of the projection's row and of the block; make() is the first to use them.
  __device__ __forceinline__ void load(const Params& p, const Tile& tile, int lane) {
    const T* row =
        static_cast<const T*>(p.q) + int64_t{tile.sequence} * (p.heads + 2 * p.kv_heads) * kDim;
    const int column = min(eight_of(lane) * 8, kDim - 8);
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int head = p.heads + min(part_of(pass, lane), 1) * p.kv_heads + tile.kv_head;
      x[pass] = *reinterpret_cast<const Vec8<T>*>(row + head * kDim + column);
    }
    block = p.block_tables[int64_t{tile.sequence} * p.block_table_stride + (tile.length - 1) / 64];
  }

  /// Norm and RoPE of the key, then fn(pass, values) by all lanes; zeros where here() is false.
  template <class Fn>
  __device__ __forceinline__ void make(const Making& making, const float* cos_sin, int lane,
                                       const Fn& fn) const {
    const int eight = eight_of(lane);
    const HeadRotation rotation(cos_sin, kDim, eight);
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const bool mine = here(pass, lane);
      float values[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) values[i] = mine ? to_float(x[pass].v[i]) : 0.0F;
      if (pass == 0) {
        const bool key = mine && part_of(pass, lane) == 0;
        if (making.k_norm != nullptr) {
          norm_head<kLanes>(values, making.k_norm, key, eight, kDim, making.norm_eps);
        }
        rotation.turn<kLanes>(values, key);
      }
      fn(pass, values);
    }
  }
};

}  // namespace treadle::cuda::decode
