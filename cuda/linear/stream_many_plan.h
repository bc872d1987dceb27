// How the streaming product of more than 80 tokens is cut over the GPU in narrow layers (sm_90a),
// and the launches for each type.
//
// A tile is 128 rows of W and all the tokens, and its steps are the blocks of 64 columns of K. Two,
// three or four thread blocks share a tile, each with a part of K. Those with the same part of two
// neighbouring tiles are a cluster, and load half of x each for both.
#pragma once

#include <cuda_runtime_api.h>

#include "linear/stream_plan.h"
#include "ops/ops.h"

namespace treadle::cuda::stream::many {

constexpr int kMostTokens = 192;  // beyond them it was measured slower

struct Plan {
  int tiles = 0;     // even
  int k_blocks = 0;  // steps of a tile
  int split = 0;     // thread blocks of a tile: 2, 3 or 4
  int blocks = 0;    // tiles * split; at most the GPU's multiprocessors
};

void launch_f16(const ops::LinearParams&, const Plan&, const Parts&, cudaStream_t);
void launch_bf16(const ops::LinearParams&, const Plan&, const Parts&, cudaStream_t);

}  // namespace treadle::cuda::stream::many
