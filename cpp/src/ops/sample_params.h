// Parameters of the sampling operation: one row per token to choose.
//
// A row's logits go through, in this order: logit_bias, repetition, presence and frequency
// penalties, barred tokens (-inf); logprobs are taken here (log_softmax); then temperature, top-k,
// top-p, min-p, and a draw. temperature == 0 or top_k == 1 takes the largest logit.
//
// Tokens rank by logit, the lower id first on a tie; every filter keeps a head of that order: top-k
// exactly k tokens, top-p the smallest head whose probability among the top-k reaches top_p (at
// least one token), min-p those with at least min_p times the best one's probability. Bias and
// penalties keep a finite logit finite: what overflows is clamped.
//
// The draw is the first kept token, by id, at which the running probability exceeds u =
// sample_uniform(seed, stream, position) of ops/philox.h: it depends on nothing but the request.
#pragma once

#include <cstdint>

namespace treadle::ops {

struct LogitBias {
  int32_t token = 0;
  float bias = 0.0F;  // -infinity bars the token
};

struct TopLogprob {
  int32_t token = 0;
  float logprob = 0.0F;
};

constexpr int32_t kMaxTopLogprobs = 64;

struct SampleRow {
  float temperature = 1.0F;
  int32_t top_k = 0;  // 0 = all
  float top_p = 1.0F;
  float min_p = 0.0F;
  float repetition_penalty = 1.0F;
  float presence_penalty = 0.0F;
  float frequency_penalty = 0.0F;
  uint64_t seed = 0;
  uint32_t stream = 0;    // continuation index
  uint32_t position = 0;  // tokens generated before this one

  const int32_t* history = nullptr;  // [history_len] prompt, then output; repetition penalty
  int32_t history_len = 0;
  int32_t output_begin =
      0;  // history[output_begin..] was generated; presence and frequency penalty

  const LogitBias* bias = nullptr;  // [bias_count]
  int32_t bias_count = 0;
  const int32_t* barred = nullptr;  // [barred_count] tokens that must not be chosen
  int32_t barred_count = 0;

  int32_t num_logprobs = -1;  // -1 none, 0 the chosen one, n also the top n (<= kMaxTopLogprobs)
  int32_t forced_token =
      -1;  // >= 0: this token is "chosen" (logprobs of a prompt token); raw logits
};

/// Whether the presence or the frequency penalty has anything to count.
constexpr bool counts_tokens(const SampleRow& row) {
  return row.forced_token < 0 && row.output_begin < row.history_len &&
         (row.presence_penalty != 0.0F || row.frequency_penalty != 0.0F);
}

struct SampleParams {
  float* logits = nullptr;          // [R][vocab], may be overwritten
  const SampleRow* rows = nullptr;  // [R], backend's memory like all that a row points to
  int32_t num_rows = 0;
  int32_t vocab = 0;
  int32_t* tokens =
      nullptr;  // [R] chosen; -1 when a logit is NaN or +inf, or all are -inf (barred)
  float* logprobs = nullptr;  // [R] of the chosen token, where asked for; null when no row asks
  TopLogprob* top = nullptr;  // [R][kMaxTopLogprobs], where asked for, best first; (-1, -inf)
                              // where fewer tokens than asked for are above -inf; null as above
};

}  // namespace treadle::ops
