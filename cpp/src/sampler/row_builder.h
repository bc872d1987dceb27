// Turns a request's SamplingParams and the state of one continuation into a row of the sampling op.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ops/sample_params.h"
#include "treadle/request.h"

namespace treadle::sampler {

/// The request's part of its rows, worked out once and shared by its n continuations. Immutable, so
/// it may be read from any thread.
///
/// Barred for one step are:
///  - the last token of every bad word whose other tokens end the history (prompt included, as in
///    transformers); a bad word of one token always;
///  - while fewer than min_new_tokens are generated: the model's end tokens (with ignore_eos too,
///  as
///    in vLLM), stop_token_ids, and the last token of every stop word whose other tokens end the
///    output (a stop word of one token always).
class RowBuilder {
 public:
  /// `params` has passed validate(). `eos_token_ids` are the model's own end tokens; ids below 0
  /// are skipped. `fallback_seed` is used when the request brings no seed.
  RowBuilder(const SamplingParams& params, std::span<const int32_t> eos_token_ids,
             uint64_t fallback_seed);

  /// The row for the next token of continuation `index`. history = prompt and output so far, of
  /// which history[output_begin..] was generated, but for the newest `pending` tokens, which are
  /// generated and not known yet: then reads_tokens() must be false. The row borrows from this
  /// object, from `history` and from `scratch`, and holds until one of them changes. `scratch`
  /// belongs to the continuation; it is reserved once, after which nothing allocates.
  ops::SampleRow build(std::span<const int32_t> history, int32_t output_begin, int32_t pending,
                       int32_t index, std::vector<int32_t>& scratch) const;

  /// Whether a row depends on which tokens came before it, not only on how many.
  bool reads_tokens() const { return uses_history_ || !bad_words_.empty() || !stop_words_.empty(); }

  /// A row that reports the log-probabilities of prompt token `token` under the raw logits and
  /// chooses nothing. For requests with prompt_logprobs >= 0.
  ops::SampleRow build_prompt(int32_t token) const;

  uint64_t seed() const { return base_.seed; }

 private:
  // Words of two tokens or more, ordered by their last but one token: those that the newest token
  // may be about to complete are found by binary search.
  using Words = std::vector<std::vector<int32_t>>;
  static void append_completions(const Words& words, std::span<const int32_t> text,
                                 std::vector<int32_t>& out);

  ops::SampleRow base_;  // what is the same in every row
  int32_t min_new_tokens_ = 0;
  int32_t prompt_logprobs_ = -1;
  bool uses_history_ = false;
  std::vector<ops::LogitBias> bias_;
  std::vector<int32_t> barred_always_;
  std::vector<int32_t> barred_early_;  // barred_always_, and what may not end the output yet
  Words bad_words_;
  Words stop_words_;
};

}  // namespace treadle::sampler
