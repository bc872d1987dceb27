// Chooses the next tokens of a step: collects the rows, runs the sampling op, brings results back.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "engine/generation.h"
#include "model/decoder.h"
#include "ops/ops.h"
#include "scheduler/scheduler.h"

namespace treadle {

/// One wanted distribution: the next token of a continuation, or, with prompt_token >= 0, the
/// log-probability of a prompt token.
struct StepRow {
  Generation* generation;  // whose token it is
  Generation* source;      // whose ids lead to it: the first continuation until the fork
  int32_t prompt_token;
  int32_t token_index;  // in the step's flat batch
};

struct StepResult {
  int32_t token = -1;
  std::optional<PositionLogprobs> logprobs;
};

class StepSampler {
 public:
  StepSampler(const ops::Ops& ops, int32_t vocab_size, int32_t max_rows_per_pass);
  ~StepSampler();
  StepSampler(const StepSampler&) = delete;
  StepSampler& operator=(const StepSampler&) = delete;

  /// The rows that `decision` asks for, in its order.
  static void collect(const Decision& decision, std::vector<StepRow>& rows);

  /// Runs the decoder's head and the sampling op over `rows`, the last forward's logit rows.
  void run(const std::vector<StepRow>& rows, model::Decoder& decoder,
           std::vector<StepResult>& results);

 private:
  void run_pass(const std::vector<StepRow>& rows, size_t begin, size_t count, float* logits,
                std::vector<StepResult>& results);

  const ops::Ops& ops_;
  const int32_t vocab_size_;
  int32_t* tokens_ = nullptr;       // [max_rows_per_pass], backend's memory
  float* logprobs_ = nullptr;       // [max_rows_per_pass]
  ops::TopLogprob* top_ = nullptr;  // [max_rows_per_pass][kMaxTopLogprobs]
  std::vector<ops::SampleRow> sample_rows_;
  std::vector<int32_t> host_tokens_;
  std::vector<float> host_logprobs_;
  std::vector<ops::TopLogprob> host_top_;
};

}  // namespace treadle
