// The flat arrays a step runs on, made from the scheduler's decision. Host memory.
//
// Token order: [decode tokens | prompt chunks], the decision's own order. T tokens, S sequences.
#pragma once

#include <cstdint>
#include <vector>

#include "scheduler/scheduler.h"

namespace treadle {

struct StepInput {
  std::vector<int32_t> tokens;     // [T] ids, 0 where the host does not know them yet
  std::vector<int32_t> positions;  // [T]
  std::vector<int32_t> rope_len;   // [T] length the rotary base is for: max(prompt, position + 1)
  std::vector<int32_t> token_sequence;  // [T]
  std::vector<int32_t> query_begin;     // [S + 1]
  std::vector<int32_t> context_len;     // [S]
  std::vector<int32_t> block_tables;    // [S][block_table_stride], -1 past a sequence's blocks
  int32_t block_table_stride = 0;
  int32_t num_decode = 0;
  int32_t max_query_len = 0;
  int32_t max_context_len = 0;
  std::vector<int32_t> logit_rows;  // tokens whose logits are wanted; filled by the engine

  int32_t num_tokens() const { return static_cast<int32_t>(tokens.size()); }
  int32_t num_sequences() const { return static_cast<int32_t>(context_len.size()); }

  /// Fills everything but logit_rows, which is cleared. Keeps its memory from step to step. A
  /// decode sequence that is null becomes padding (ops::SequenceBatch).
  void build(const Decision& decision);

  /// A step of decode tokens alone: adds padding sequences (ops::SequenceBatch) until there are
  /// `count`, and widens the block tables to a power of two of at most `max_stride`, so that steps
  /// come in few shapes. logit_rows is not touched.
  void pad(int32_t count, int32_t max_stride);

 private:
  std::vector<int32_t> padded_tables_;  // kept for its memory
};

}  // namespace treadle
