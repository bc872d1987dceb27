// How a streamed product is cut over the GPU, and the launches for each type.
//
// A tile is 128 rows of W, and its steps are the blocks of 64 columns of K. Wide layers give each
// thread block some whole tiles. In narrow ones several thread blocks share a tile, each with a
// part of K; the last of them to be done adds the parts in the order of K.
#pragma once

#include <cuda_runtime_api.h>

#include "ops/ops.h"

namespace treadle::cuda::stream {

constexpr int kRows = 128;  // of W in a tile
constexpr int kDepth = 64;  // columns of W and x in a step

struct Plan {
  int tiles = 0;
  int k_blocks = 0;  // steps of a tile
  int split = 1;     // thread blocks of a tile
  int blocks = 0;    // thread blocks: tiles * split, or with split = 1 at most tiles
};

// Most sums of a thread block: tiles of 4-bit weights have up to 192 rows and 192 tokens.
constexpr int kMostSums = 192 * 192;
// Most thread blocks of a multiprocessor that exchange parts.
constexpr int kCounters = 4;

/// Where the thread blocks of a tile exchange their parts.
struct Parts {
  float* sums = nullptr;    // [multiprocessors][kMostSums]
  int* counters = nullptr;  // [multiprocessors][kCounters], zero between launches
};

/// Whether this build holds the kernels (TREADLE_CUDA_ARCHS has 90a).
bool built();
void launch_f16(const ops::LinearParams&, const Plan&, const Parts&, cudaStream_t);
void launch_bf16(const ops::LinearParams&, const Plan&, const Parts&, cudaStream_t);

}  // namespace treadle::cuda::stream
