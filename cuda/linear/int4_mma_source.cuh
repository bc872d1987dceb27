// What the threads of the kernel of int4_mma.h copy to shared memory.
#pragma once

#include "common/ptx.cuh"
#include "linear/int4_mma_shape.cuh"

namespace treadle::cuda::int4::mma {

/// Waits for the copies of the next stage of a ring of so many.
__device__ __forceinline__ void wait_for_copies(int stages) {
  if (stages == 5) {
    cp_async_wait<3>();
  } else if (stages == 3) {
    cp_async_wait<1>();
  } else {
    cp_async_wait<0>();
  }
}

/// What this thread copies for one step after the other.
template <class T, class S>
class Source {
 public:
  __device__ __forceinline__ Source(const Args& a, int tile, int step)
      : a_(a),
        to_x_(threadIdx.x / 8 * 128 + (((threadIdx.x ^ (threadIdx.x / 8)) & 7) << 4)),
        to_w_(S::kQ + threadIdx.x / 32 * (S::kTiles * kTileBytes) + threadIdx.x % 32 * kLaneBytes),
        to_words_(S::kWords + threadIdx.x / 32 * S::kWarpWords + threadIdx.x % 32 * 16) {
    keep(to_x_);
    keep(to_w_);
    keep(to_words_);
    go_to(tile, step);
  }
  __device__ __forceinline__ void go_to(int tile, int step) {
    const int warp = threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    const int row_tile = tile / a_.plan.token_tiles;
    const int token =
        (tile - row_tile * a_.plan.token_tiles) * S::kTokens + static_cast<int>(threadIdx.x) / 8;
    tile_ = tile;
    column_ = step * kDepth;
    tokens_ = a_.out.m - token;
    x_ = static_cast<const T*>(a_.x) + size_t(token) * a_.layout.k + column_ + threadIdx.x % 8 * 8;
    const int first = row_tile * (kRows / kTileRows) + warp * S::kTiles;
    tiles_ = a_.layout.tiles - first;
    w_ = a_.packed + (size_t(first) * a_.layout.k_tiles + step) * kTileBytes + lane * kLaneBytes;
    const int mine = lane / 4 % S::kTiles;
    words_ = a_.packed + a_.layout.q_bytes() +
             size_t(first + mine) * a_.layout.groups * kGroupBytes + lane % 4 * 16;
  }
  /// `live`: there is such a step. Else the stage is cleared, which costs less than a branch.
  __device__ __forceinline__ void fetch_w(uint32_t stage, bool live) const {
    const int tile_bytes = a_.layout.k_tiles * kTileBytes;
#pragma unroll
    for (int t = 0; t < S::kTiles; ++t) {
      cp_async_16(stage + to_w_ + t * kTileBytes, w_ + t * tile_bytes, live && t < tiles_);
    }
    // In 16-byte pieces; the second group is needed only where groups have 32 columns.
    const int lane = threadIdx.x % 32;
    if (S::kTiles == 4 || lane < 8 * S::kTiles) {
      const int column = column_ + lane / (4 * S::kTiles) * kGroupMultiple;
      const int group = min(column >> a_.group_shift, a_.layout.groups - 1);
      cp_async_16_l1(stage + to_words_, words_ + group * kGroupBytes,
                     live && lane / 4 % S::kTiles < tiles_);
    }
  }
  __device__ __forceinline__ void fetch_x(uint32_t stage, bool live) const {
    constexpr int kRowsEach = S::kThreads / 8;
    const bool inside = live && column_ + static_cast<int>(threadIdx.x) % 8 * 8 < a_.layout.k;
#pragma unroll
    for (int i = 0; i * kRowsEach < S::kTokens; ++i) {
      // The last rows may be those of the first half of the threads.
      if ((i + 1) * kRowsEach > S::kTokens && threadIdx.x / 8 + i * kRowsEach >= S::kTokens) break;
      cp_async_16_l1(stage + to_x_ + i * (kRowsEach * 128), x_ + i * kRowsEach * a_.layout.k,
                     inside && i * kRowsEach < tokens_);
    }
  }
  __device__ __forceinline__ void next() {
    w_ += kTileBytes;
    x_ += kDepth;
    column_ += kDepth;
    if (column_ >= a_.layout.k) go_to(tile_ + 1, 0);
  }

 private:
  const Args& a_;
  uint32_t to_x_, to_w_, to_words_;  // bytes from a stage's begin
  int tile_;
  int column_;  // the step's first one
  int tokens_;  // that there are from this thread's first one on
  int tiles_;   // of 16 rows, from the warp's first one on
  const T* x_;
  const uint8_t* w_;
  const uint8_t* words_;
};

}  // namespace treadle::cuda::int4::mma
