// What the CPU's operations share, and one function for each of them.
#pragma once

#include <vector>

#include "ops/cpu/kernels.h"
#include "ops/cpu/memory.h"
#include "ops/cpu/thread_pool.h"
#include "ops/ops.h"

namespace treadle::ops::cpu {

struct Backend {
  Backend(int num_threads, Isa isa) : kernels(kernels_of(isa)), pool(num_threads) {}

  const Kernels* kernels;
  Memory memory;
  ThreadPool pool;

  /// Makes scratch(thread) hold at least this many floats for every thread.
  void reserve_scratch(size_t floats_per_thread);
  float* scratch(int thread) { return scratch_ + size_t(thread) * scratch_stride_; }

  std::vector<float> normed;  // a linear layer's normalised input

  // Attention's plan and partial results, kept so that a step does not allocate.
  struct AttentionTile {
    int32_t sequence;
    int32_t token_begin;
    int32_t tokens;
    int32_t first_segment;
    int32_t segments;     // that its queries reach, from first_segment on
    bool split;           // its segments are separate tasks
    size_t state_floats;  // of one segment of one head
    size_t states;        // offset of its partial results
  };
  struct AttentionItem {
    int32_t tile;
    int32_t kv_head;
    int32_t segment;  // -1 = all of them
  };
  std::vector<AttentionTile> attention_tiles;
  std::vector<AttentionItem> attention_items;
  std::vector<AttentionItem> attention_merges;
  std::vector<float> attention_states;

 private:
  float* scratch_ = nullptr;
  size_t scratch_stride_ = 0;
};

/// cpu_ops() with a chosen instruction set, which must be one of supported_isas().
Ops make_ops(int num_threads, Isa isa);

LinearWeight make_linear(Backend&, const WeightPiece* pieces, int32_t count, int64_t in_features,
                         const float* bias, bool silu_mul);
void release_linear(Backend&, LinearWeight* weight);

void embed(Backend&, const EmbedParams&);
void linear(Backend&, const LinearParams&);
void rms_norm(Backend&, const NormTask&, int64_t rows);
void rope(Backend&, const RopeParams&);
void qkv(Backend&, const QkvParams&);
void attention(Backend&, const AttentionParams&);
void gather(Backend&, const GatherParams&);
void copy_block(Backend&, const CopyBlockParams&);

}  // namespace treadle::ops::cpu
