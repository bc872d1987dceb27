// Bank-conflict-free rows of 16-bit elements in shared memory.
#pragma once

#include <cstdint>

namespace treadle::cuda {

/// Where 16-byte chunk c of row r lies in its row, so that eight rows of one chunk column meet
/// different banks.
template <int kDim>
__device__ __forceinline__ int swizzle(int r, int c) {
  if constexpr (kDim % 64 == 0) return c ^ (r & 7);
  if constexpr (kDim == 96) return c ^ ((r >> 1) & 3);
  return c ^ ((r >> 2) & 1);  // 80
}

/// Address of chunk `even + low` (low: 0 or 1) of row r, which starts at `row`. For the widths with
/// whole 128-byte lines `row` must be a multiple of the row's size: then all that depends on
/// `even`, usually a constant, is one exclusive or.
template <int kDim>
__device__ __forceinline__ uint32_t swizzled(uint32_t row, int r, int even, int low) {
  if constexpr (kDim % 64 == 0) return (row + ((low ^ (r & 7)) << 4)) ^ (even << 4);
  return row + swizzle<kDim>(r, even + low) * 16;
}

}  // namespace treadle::cuda
