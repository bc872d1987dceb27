#include "engine/step.h"

#include <algorithm>
#include <numeric>

namespace treadle {
namespace {

/// Batches come in few sizes, so that few steps are recorded. Up to 8 tokens cost the same; from
/// there on a step is at most an eighth larger than its batch, or by 15.
int32_t padded_batch(int32_t batch, int32_t most) {
  const int32_t unit = batch <= 64 ? 8 : batch <= 256 ? 16 : 64;
  int32_t padded = 1;
  while (padded < batch && padded < 8) padded *= 2;
  if (batch > 8) padded = (batch + unit - 1) / unit * unit;
  return std::min(padded, most);
}

}  // namespace

bool Step::decodes() const {
  if (decision.num_decode != decision.num_tokens || rows.size() != decision.scheduled.size()) {
    return false;
  }
  return std::ranges::all_of(rows, [](const StepRow& row) { return row.prompt_token < 0; });
}

void Step::drop(const std::vector<const Generation*>& ended) {
  if (ended.empty()) return;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (std::ranges::find(ended, rows[i].generation) == ended.end()) continue;
    rows[i].generation = nullptr;
    decision.scheduled[i].sequence = nullptr;
  }
}

StepRunner::StepRunner(const ops::Ops& ops, ops::KvPool pool, model::Decoder& decoder,
                       int32_t vocab_size)
    : ops_(ops), pool_(pool), decoder_(decoder), sampler_(ops, vocab_size) {}

void StepRunner::launch(Step& step) {
  StepSampler::collect(step.decision, step.rows);
  run(step, 0);
}

bool StepRunner::worth_queuing(const Step& next) const {
  const int32_t most = decoder_.limits().max_sequences;
  const auto rows = static_cast<int32_t>(next.rows.size());
  const auto ended = static_cast<int32_t>(
      std::ranges::count(next.rows, static_cast<Generation*>(nullptr), &StepRow::generation));
  return ended < rows && padded_batch(rows, most) == padded_batch(rows - ended, most);
}

void StepRunner::launch_behind(Step& next) { run(next, 1); }

void StepRunner::run(Step& step, int32_t pending_tokens) {
  StepInput& input = step.input;
  input.build(step.decision);
  for (const StepRow& row : step.rows) input.logit_rows.push_back(row.token_index);
  auto rows = static_cast<int32_t>(step.rows.size());
  const int32_t batch = padded_batch(rows, decoder_.limits().max_sequences);
  const bool repeats =
      ops_.replay != nullptr && step.decodes() && batch <= decoder_.max_logit_rows();
  if (repeats) {
    input.pad(batch, kv::blocks_for(decoder_.limits().session_len));
    input.logit_rows.resize(static_cast<size_t>(batch));
    std::iota(input.logit_rows.begin(), input.logit_rows.end(), 0);
    rows = batch;
  }

  const auto begin = std::chrono::steady_clock::now();
  for (const auto& [src, dst] : step.decision.copies) {
    ops_.copy_block(ops_.self, {.kv = pool_, .src = src, .dst = dst}, {});
  }
  sampler_.prepare(step.rows, static_cast<size_t>(rows), pending_tokens);
  decoder_.load({.tokens = input.tokens,
                 .positions = input.positions,
                 .rope_len = input.rope_len,
                 .token_sequence = input.token_sequence,
                 .query_begin = input.query_begin,
                 .context_len = input.context_len,
                 .block_tables = input.block_tables,
                 .logit_rows = input.logit_rows,
                 .device_tokens = pending_tokens > 0 ? sampler_.tokens() : nullptr,
                 .block_table_stride = input.block_table_stride,
                 .num_decode = input.num_decode,
                 .max_query_len = input.max_query_len,
                 .max_context_len = input.max_context_len});
  const auto body = [](void* context) {
    auto& self = *static_cast<StepRunner*>(context);
    self.decoder_.run();
    self.sampler_.launch(self.decoder_);
  };
  if (repeats) {
    const uint64_t key = uint64_t{sampler_.launch_shape()} |
                         uint64_t(input.block_table_stride) << 32 | uint64_t(pending_tokens) << 63;
    ops_.replay(ops_.self, key, body, this, {});
  } else {
    body(this);
  }
  sampler_.download(step.rows.size(), step.arrival);
  if (ops_.mark != nullptr) step.mark = ops_.mark(ops_.self, {});
  model_time_ += std::chrono::steady_clock::now() - begin;
}

void StepRunner::finish(Step& step) {
  const auto begin = std::chrono::steady_clock::now();
  if (ops_.wait != nullptr) {
    ops_.wait(ops_.self, step.mark);
  } else {
    ops_.synchronize(ops_.self, {});
  }
  model_time_ += std::chrono::steady_clock::now() - begin;
  StepSampler::unpack(step.rows, step.arrival, step.results);
}

}  // namespace treadle
