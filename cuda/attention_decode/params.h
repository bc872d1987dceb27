// What the decode kernel is told, and the shared memory that it needs.
#pragma once

#include <cstdint>

#include "ops/types.h"

namespace treadle::cuda::decode {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kWarpKeys = 16;  // of a block of 64
constexpr int kPartShift = 4;  // log2 of kWarpKeys
constexpr int kBlockShift = 6;

/// For a launch that does the QKV operation's work as well: q of Params is then the projection,
/// [num_decode][heads + 2 * kv_heads][head_dim]. All columns of a head are rotated.
struct Making {
  const float* cos_sin;  // [num_decode][head_dim / 2][2]
  const float* q_norm;   // [head_dim] or null
  const float* k_norm;
  float norm_eps;
};

struct Params {
  const void* q;  // [num_decode][heads][head_dim]
  void* out;      // like q
  void* kv;       // the pool, written only with `making`
  const int32_t* context_len;
  const int32_t* block_tables;
  int32_t* counters;  // [num_decode][kv_heads] parts of a tile that have arrived
  float* parts;       // [2 * grid][group][head_dim] unnormalised sums
  float* part_stats;  // [2 * grid][group][2] maximum of the scores and sum of exponentials
  float scale_log2;   // scale * log2(e)
  int32_t window;
  int32_t heads, kv_heads, layer, num_layers;
  // An int8 pool's blocks and their KvScales, in units of 512 bytes, the size of 64 of these: from
  // one block to the next, to the scales of block 0, from a block's scales to the next one's (0
  // where all have the same, which are there before anything is written).
  int32_t block_stride, scales_begin, scales_stride;
  int32_t num_decode, block_table_stride;
  int32_t stages;
  int32_t few_owners;  // thread blocks that share a little work, at most the grid
  Making making;
};

/// Floats in which the warps' sums meet: [4 warps][group][head_dim], later the parts' weights
/// [group][grid].
constexpr int merge_floats(int group, int dim, int grid) {
  const int merge = kWarps * group * dim;
  const int weights = (group * (grid + 1) + 3) / 4 * 4;
  return merge > weights ? merge : weights;
}

/// Bytes of shared memory beside the rings of stages.
constexpr int fixed_bytes(int group, int dim, int grid, int sequences) {
  return 4 * (merge_floats(group, dim, grid) + kWarps * 16 * 2 + 2 * sequences + 1);
}

/// Bytes behind them (from a multiple of 16 on) where the newest keys and values of an int8 pool
/// wait with their KvScales: for each thread eight of K or V.
constexpr int kParkingBytes = kThreads * 16;

/// Thread blocks of a multiprocessor, where their rings fit. Making halves of int8 takes more warps
/// at work than waiting for memory does.
constexpr int blocks_per_sm(int dim, int element_bytes) {
  return dim > 128 ? 1 : element_bytes == 1 ? 3 : 2;
}
constexpr int kMaxBlocksPerSm = 3;

/// Bytes of a stage of all warps: 64 keys and values, and with int8 (1 byte an element) their
/// KvScales.
constexpr int stage_bytes(int dim, int element_bytes) {
  return 2 * 64 * (dim * element_bytes + (element_bytes == 1 ? 8 : 0));
}

/// Shared memory that a thread block needs at least for a 16-bit pool and a few hundred sequences.
constexpr int least_shared_bytes(int group, int dim) {
  constexpr int kGrid = 256;
  constexpr int kSequences = 256;
  return fixed_bytes(group, dim, kGrid, kSequences) + 128 + stage_bytes(dim, 2);
}

}  // namespace treadle::cuda::decode
