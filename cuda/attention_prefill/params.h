// What the prefill kernels are told. Sequence 0 here is the first prompt chunk of the batch.
#pragma once

#include <cstdint>

namespace treadle::cuda::prefill {

struct Params {
  const void* q;                // [T][heads][head_dim], the whole batch
  void* out;                    // like q
  const void* kv;               // the pool
  const int32_t* query_begin;   // [num_sequences + 1]
  const int32_t* context_len;   // [num_sequences]
  const int32_t* block_tables;  // [num_sequences][block_table_stride]
  int32_t* counters;            // next tile, finished blocks of threads; both zero between launches
  float scale_log2;             // scale * log2(e)
  int32_t window;
  int32_t heads, kv_heads, layer, num_layers;
  // An int8 pool's blocks and their KvScales, in units of 512 bytes, the size of 64 of these: from
  // one block to the next, to the scales of block 0, from a block's scales to the next one's.
  int32_t block_stride, scales_begin, scales_stride;
  int32_t num_sequences, block_table_stride;
};

}  // namespace treadle::cuda::prefill
