// How a product of many tokens is cut over the GPU, and the launches for each type.
#pragma once

#include <cuda_runtime_api.h>

#include "ops/ops.h"

namespace treadle::cuda::tile {

constexpr int kTokens = 128;  // of a thread block's tile
constexpr int kDepth = 64;    // columns of x and W in a stage

// Columns of x and W at least: under the first stages of a tile the one before is stored.
constexpr int kLeastDepth = 512;

constexpr int kCluster = 2;  // thread blocks with the same tokens or the same rows of W

/// What the thread blocks of a cluster have in common: each loads half of it for both.
enum class Share { kW, kX };

struct Plan {
  Share share = Share::kW;
  int rows = 0;         // of W in a tile: 192, 224 or 256; 176 or 224 where clusters share x
  int tiles = 0;        // token_tiles * w_tiles
  int token_tiles = 0;  // of a cluster: 256 tokens, or 128 where it shares x
  int w_tiles = 0;      // of a cluster: `rows` rows, or twice that where it shares x
  int k_blocks = 0;     // stages of a tile
  int band = 1;         // token tiles that take turns before the next tile of W
  int blocks = 0;       // thread blocks, two in a cluster
};

/// Whether this build holds the kernels (TREADLE_CUDA_ARCHS has 90a).
bool built();
void launch_f16(const ops::LinearParams&, const Plan&, cudaStream_t);
void launch_bf16(const ops::LinearParams&, const Plan&, cudaStream_t);

}  // namespace treadle::cuda::tile
