// Bank-conflict-free rows of 16-bit elements in shared memory.
#pragma once

namespace treadle::cuda {

/// Where 16-byte chunk c of row r lies in its row, so that eight rows of one chunk column meet
/// different banks.
template <int kDim>
__device__ __forceinline__ int swizzle(int r, int c) {
  if constexpr (kDim % 64 == 0) return c ^ (r & 7);
  if constexpr (kDim == 96) return c ^ ((r >> 1) & 3);
  return c ^ ((r >> 2) & 1);  // 80
}

}  // namespace treadle::cuda
