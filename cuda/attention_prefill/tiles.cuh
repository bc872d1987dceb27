// Tiles of query rows: how both prefill kernels number and find them. And where pages of int8 are.
#pragma once

#include "attention_prefill/params.h"
#include "common/ptx.cuh"
#include "ops/types.h"

namespace treadle::cuda::prefill {

struct TileInfo {
  int first_token;  // of the flat batch
  int rows;         // valid query rows
  int first_pos;    // position of row 0
  int context_len;
  int head;
  int key_begin, key_end;  // key blocks [begin, end)
  int done;                // nothing left: the rest is unset
};

/// Fills starts[num_sequences + 1], the first tile of each sequence; returns how many there are. By
/// one warp.
template <int kRows>
__device__ inline int plan_tiles(const Params& p, int32_t* starts, int lane) {
  int before = 0;
  for (int base = 0; base < p.num_sequences; base += 32) {
    const int i = base + lane;
    int tiles = 0;
    if (i < p.num_sequences) {
      tiles = (p.query_begin[i + 1] - p.query_begin[i] + kRows - 1) / kRows;
    }
    int sum = tiles;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const int other = __shfl_up_sync(0xffffffffU, sum, d);
      if (lane >= d) sum += other;
    }
    if (i < p.num_sequences) starts[i] = before + sum - tiles;
    before += __shfl_sync(0xffffffffU, sum, 31);
  }
  if (lane == 0) starts[p.num_sequences] = before;
  __syncwarp();
  return before;
}

/// Tiles in the order they are drawn: by sequence, longest first, heads innermost.
template <int kRows, int kKeys>
__device__ inline TileInfo tile_info(const Params& p, const int32_t* starts, int total, int item,
                                     int* sequence) {
  TileInfo t = {};
  const int tile = item / p.heads;
  t.done = tile >= total ? 1 : 0;
  if (t.done != 0) return t;
  int low = 0;
  int high = p.num_sequences;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (starts[middle] <= tile ? low : high) = middle;
  }
  *sequence = low;
  const int begin = p.query_begin[low];
  const int query_len = p.query_begin[low + 1] - begin;
  const int row = (starts[low + 1] - 1 - tile) * kRows;
  t.first_token = begin + row;
  t.rows = min(kRows, query_len - row);
  t.context_len = p.context_len[low];
  t.first_pos = t.context_len - query_len + row;
  t.head = item % p.heads;
  const int first_key = p.window > 0 ? max(0, t.first_pos - p.window + 1) : 0;
  t.key_begin = first_key / kKeys;
  t.key_end = (t.first_pos + t.rows + kKeys - 1) / kKeys;
  return t;
}

/// Where the int8 page of one (block, K or V, head) and its 64 scales are.
struct Int8Page {
  const uint8_t* elements;
  const ops::KvScale* scales;
};

template <int kDim>
__device__ __forceinline__ Int8Page int8_page(const Params& p, int block, int kv, int kv_head) {
  const int page = (p.layer * 2 + kv) * p.kv_heads + kv_head;
  const auto at = [&](int units) {
    return static_cast<const uint8_t*>(p.kv) + int64_t{units} * 512;
  };
  return {
      at(block * p.block_stride + page * (kDim / 8)),
      reinterpret_cast<const ops::KvScale*>(at(p.scales_begin + block * p.scales_stride + page))};
}

}  // namespace treadle::cuda::prefill
