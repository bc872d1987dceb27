// How a product with 4-bit weights is cut over a GPU without wgmma, and the launches for each type.
//
// A tile is 256 rows of W and 32 to 128 tokens, and its steps are the blocks of 64 columns of K.
// Where there are few tiles, several thread blocks share each and exchange their sums. Else the
// steps of all tiles are one row, of which every thread block has an equal piece: it ends a tile
// that the one before it has begun, computes some whole ones, and begins the next.
#pragma once

#include <cuda_runtime_api.h>

#include "linear/stream_plan.h"
#include "ops/ops.h"

namespace treadle::cuda::int4::mma {

constexpr int kRows = 256;  // of a tile
constexpr int kDepth = 64;  // columns of W in a step

struct Plan {
  int tokens = 0;       // of a tile: 32, 48, 64, 96 or 128
  int token_tiles = 0;  // tile t has tokens of t % token_tiles and rows of t / token_tiles
  int tiles = 0;
  int steps = 0;   // of a tile
  int split = 1;   // thread blocks of each tile, or
  int each = 0;    // steps of a thread block; the last one may have fewer
  int blocks = 0;  // thread blocks; they all fit the GPU at once
  int stages = 0;  // of a thread block's ring: 2, 3 or 5
};

/// Warps of a thread block. With few tokens a warp has more rows, so that what it reads of x serves
/// more products.
constexpr int warps(int tokens) { return tokens == 64 ? 4 : 8; }

/// Whether the tensor cores get numbers less zeros alone, see int4_mma_kernel.cuh.
constexpr bool exact(int tokens) { return tokens <= 48; }

/// Thread blocks of a multiprocessor that the registers allow.
constexpr int register_blocks(int tokens) { return tokens == 32 || tokens == 64 ? 2 : 1; }

/// Bytes of shared memory of a stage for tiles of so many tokens: x, numbers and groups' words.
constexpr int stage_bytes(int tokens) { return tokens * 128 + kRows * 32 + 2048; }

void launch_f16(const ops::LinearParams&, const Plan&, const stream::Parts&, cudaStream_t);
void launch_bf16(const ops::LinearParams&, const Plan&, const stream::Parts&, cudaStream_t);

}  // namespace treadle::cuda::int4::mma
