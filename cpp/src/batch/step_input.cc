#include "batch/step_input.h"

#include <algorithm>
#include <bit>
#include <numeric>

namespace treadle {

void StepInput::build(const Decision& decision) {
  const auto num_tokens = static_cast<size_t>(decision.num_tokens);
  const size_t num_sequences = decision.scheduled.size();
  tokens.resize(num_tokens);
  positions.resize(num_tokens);
  rope_len.resize(num_tokens);
  token_sequence.resize(num_tokens);
  query_begin.resize(num_sequences + 1);
  context_len.resize(num_sequences);
  logit_rows.clear();
  num_decode = decision.num_decode;
  max_query_len = max_context_len = block_table_stride = 0;

  int32_t t = 0;
  for (size_t s = 0; s < num_sequences; ++s) {
    const auto& [sequence, query_len] = decision.scheduled[s];
    if (sequence == nullptr) {
      tokens[t] = positions[t] = context_len[s] = 0;
      rope_len[t] = 1;
      query_begin[s] = token_sequence[t] = t;
      ++t;
      continue;
    }
    const int32_t begin = sequence->kv.num_tokens;
    query_begin[s] = t;
    context_len[s] = begin + query_len;
    max_query_len = std::max(max_query_len, query_len);
    max_context_len = std::max(max_context_len, context_len[s]);
    block_table_stride = std::max(block_table_stride, kv::blocks_for(context_len[s]));
    for (int32_t position = begin; position < begin + query_len; ++position, ++t) {
      const bool known = position < static_cast<int32_t>(sequence->ids.size());
      tokens[t] = known ? sequence->ids[position] : 0;
      positions[t] = position;
      rope_len[t] = std::max(sequence->prompt_len, position + 1);
      token_sequence[t] = static_cast<int32_t>(s);
    }
  }
  query_begin[num_sequences] = t;

  block_tables.assign(num_sequences * static_cast<size_t>(block_table_stride), kv::kNoBlock);
  for (size_t s = 0; s < num_sequences; ++s) {
    if (context_len[s] == 0) continue;
    const std::vector<kv::BlockId>& blocks = decision.scheduled[s].sequence->kv.blocks;
    std::copy_n(blocks.begin(), kv::blocks_for(context_len[s]),
                block_tables.begin() + static_cast<ptrdiff_t>(s) * block_table_stride);
  }
}

void StepInput::pad(int32_t count, int32_t max_stride) {
  const auto wide = static_cast<int32_t>(std::bit_ceil(static_cast<uint32_t>(block_table_stride)));
  const int32_t stride = std::max(block_table_stride, std::min(wide, max_stride));
  const auto sequences = static_cast<size_t>(count);
  std::vector<int32_t>& tables = padded_tables_;
  tables.assign(sequences * static_cast<size_t>(stride), kv::kNoBlock);
  for (int32_t s = 0; s < num_sequences(); ++s) {
    std::copy_n(block_tables.begin() + ptrdiff_t{s} * block_table_stride, block_table_stride,
                tables.begin() + ptrdiff_t{s} * stride);
  }
  block_tables.swap(tables);
  block_table_stride = stride;
  tokens.resize(sequences, 0);
  positions.resize(sequences, 0);
  rope_len.resize(sequences, 1);
  context_len.resize(sequences, 0);
  token_sequence.resize(sequences);
  std::iota(token_sequence.begin(), token_sequence.end(), 0);
  query_begin.resize(sequences + 1);
  std::iota(query_begin.begin(), query_begin.end(), 0);
  num_decode = count;
}

}  // namespace treadle
