// How a product with 4-bit weights is cut over the GPU (sm_90a), and the launches for each type.
//
// A tile is 128, 192 or 256 rows of W and up to 256 tokens, and its steps are the blocks of 128
// columns of K. Thread blocks take whole tiles in rounds; the tiles of a last round that would
// leave multiprocessors idle are cut along K, and their thread blocks exchange the parts. Or, where
// tiles are fewer than multiprocessors, but more than half of them, the others compute the last
// steps of all.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "linear/stream_plan.h"
#include "ops/ops.h"

namespace treadle::cuda::int4::wgmma {

constexpr int kDepth = 128;  // columns of W in a step

struct Plan {
  int rows = 0;         // of a tile: 128, 192 or 256
  int tokens = 0;       // of a tile: 32, 64, 96, 128, 192 or 256
  int token_tiles = 0;  // tile t has tokens of t % token_tiles and rows of t / token_tiles
  int tiles = 0;
  int whole = 0;     // tiles [0, whole) are computed by one thread block each
  int k_blocks = 0;  // steps of a tile
  int split = 1;     // thread blocks of each tile from `whole` on
  int cut = 0;  // if not 0: steps of a tile that one thread block computes; the last steps of all
                // are shared by the first `blocks - tiles` thread blocks
  bool pair = false;  // split is 2 or 4, whole is 0, and two of them are a cluster
  int per_sm = 1;     // thread blocks that fit a multiprocessor: 1 or 2
  int blocks = 0;     // thread blocks; at most what fits the GPU
};

/// Whether this build holds the kernels (TREADLE_CUDA_ARCHS has 90a).
bool built();
void launch_f16(const ops::LinearParams&, const Plan&, const stream::Parts&, cudaStream_t);
void launch_bf16(const ops::LinearParams&, const Plan&, const stream::Parts&, cudaStream_t);

}  // namespace treadle::cuda::int4::wgmma
