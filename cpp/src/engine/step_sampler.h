// Chooses the next tokens of a step: collects the rows, runs the sampling op, brings results back.
#pragma once

#include <cstddef>
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
  Generation* generation;  // whose token it is; null in a queued step: it has ended
  Generation* source;      // whose ids lead to it: the first continuation until the fork
  int32_t prompt_token;
  int32_t token_index;  // in the step's flat batch
};

struct StepResult {
  int32_t token = -1;
  std::optional<PositionLogprobs> logprobs;
};

/// A step calls prepare(), launch() and download() in this order, and unpack() once the backend has
/// been waited for.
class StepSampler {
 public:
  /// What comes back of one step.
  struct Arrival {
    std::vector<int32_t> tokens;
    std::vector<float> logprobs;
    std::vector<ops::TopLogprob> top;   // [R][kMaxTopLogprobs]
    std::vector<int32_t> num_logprobs;  // of each row, as asked for
  };

  StepSampler(const ops::Ops& ops, int32_t vocab_size);
  ~StepSampler();
  StepSampler(const StepSampler&) = delete;
  StepSampler& operator=(const StepSampler&) = delete;

  /// The rows that `decision` asks for, in its order.
  static void collect(const Decision& decision, std::vector<StepRow>& rows);

  /// Uploads what the op must know of `rows`, and of padding rows behind them until there are
  /// `padded_count`: these choose a token that nobody reads. `pending_tokens` of each row's history
  /// are not in its ids yet (RowBuilder::build).
  void prepare(const std::vector<StepRow>& rows, size_t padded_count, int32_t pending_tokens);

  /// Runs the decoder's head and the sampling op over the prepared rows, padding included, which
  /// are the last forward's logit rows. Nothing but operations, so that it may be part of what
  /// Ops::replay() records when all rows fit one pass (Decoder::max_logit_rows).
  void launch(model::Decoder& decoder);

  /// Steps of equal shapes have equal launches. Below 2^32, so that a key has room for more.
  uint64_t launch_shape() const;

  /// Where the op leaves the chosen tokens, in the backend's memory, until the next launch().
  const int32_t* tokens() const { return static_cast<const int32_t*>(tokens_.data); }

  /// Queues the way back of the first `count` rows' results.
  void download(size_t count, Arrival& arrival);
  static void unpack(const std::vector<StepRow>& rows, const Arrival& arrival,
                     std::vector<StepResult>& results);

 private:
  /// Backend's memory that grows in powers of two and loses what it held when it does.
  struct Buffer {
    void* data = nullptr;
    size_t bytes = 0;
  };

  template <class T>
  T* reserve(Buffer& buffer, size_t count);
  template <class T>
  void download(std::vector<T>& host, const Buffer& buffer, size_t count);

  const ops::Ops& ops_;
  const int32_t vocab_size_;
  Buffer rows_;      // the rows at its start, what they point to behind them
  Buffer tokens_;    // [R]
  Buffer logprobs_;  // [R]
  Buffer top_;       // [R][kMaxTopLogprobs]
  std::vector<ops::SampleRow> sample_rows_;
  std::vector<char> packed_;
  bool wants_logprobs_ = false;  // any row does
  bool wants_top_ = false;
};

}  // namespace treadle
