// What the parts of the kernel of int4_mma.h share: its arguments, and what lies where in shared
// memory.
#pragma once

#include "linear/int4_layout.h"
#include "linear/int4_mma_plan.h"
#include "linear/stream_store.cuh"

namespace treadle::cuda::int4::mma {

static_assert(kDepth == kTileColumns);

struct Args {
  const uint8_t* packed;  // Layout
  const void* x;          // [m][k]
  stream::Output out;
  Layout layout;
  Plan plan;
  stream::Parts parts;
  int group_shift;  // a column's group is column >> group_shift, or the last one
  bool gated;
  bool float_output;
};

/// A thread block, and a stage of its ring: x [tokens][64] in lines of 128 bytes whose 16-byte
/// chunks are swizzled, W's numbers [16 tiles][32 lanes] of 16 bytes, and group words [warp][2
/// groups][tiles of a warp] of 64 bytes.
template <int kTokens_>
struct Shape {
  static constexpr int kTokens = kTokens_;
  static constexpr int kWarps = warps(kTokens);
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kTiles = kRows / kTileRows / kWarps;  // of 16 rows, of a warp
  static constexpr int kVectors = kTokens / 8;
  static constexpr int kPieces = kTiles * kVectors;  // of a warp's sums, see place_of()
  static constexpr bool kExact = exact(kTokens);
  static constexpr int kQ = kTokens * 128;  // bytes from a stage's begin
  static constexpr int kWords = kQ + kRows / kTileRows * kTileBytes;
  static constexpr int kWarpWords = 2 * kTiles * kGroupBytes;
  static constexpr int kStage = kWords + kWarps * kWarpWords;
  static_assert(kStage == stage_bytes(kTokens));
};

/// Keeps what is computed once in a register.
__device__ __forceinline__ void keep(uint32_t& x) { asm volatile("" : "+r"(x)); }

}  // namespace treadle::cuda::int4::mma
