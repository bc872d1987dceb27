#include "ops/cpu/sample_adjust.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

namespace treadle::ops::cpu {
namespace {

constexpr float kLargest = std::numeric_limits<float>::max();

bool in_vocab(int32_t token, int32_t vocab) { return token >= 0 && token < vocab; }

// Overflow is clamped: +inf would look like a damaged row, -inf like a barred token.
void replace(float& logit, double value) {
  if (!std::isfinite(logit)) return;
  logit = static_cast<float>(std::clamp(value, -double{kLargest}, double{kLargest}));
}

void penalize_repetition(float penalty, std::span<const int32_t> history, float* logits,
                         int32_t vocab, std::vector<int32_t>& seen) {
  for (const int32_t token : history) {
    if (!in_vocab(token, vocab) || seen[token] != 0) continue;
    seen[token] = 1;
    float& x = logits[token];
    replace(x, x > 0.0F ? double{x} / penalty : double{x} * penalty);
  }
  for (const int32_t token : history) {
    if (in_vocab(token, vocab)) seen[token] = 0;
  }
}

void penalize_output(double presence, double frequency, std::span<const int32_t> output,
                     float* logits, int32_t vocab, std::vector<int32_t>& counts) {
  for (const int32_t token : output) {
    if (in_vocab(token, vocab)) ++counts[token];
  }
  for (const int32_t token : output) {
    if (!in_vocab(token, vocab) || counts[token] == 0) continue;
    replace(logits[token], logits[token] - presence - frequency * counts[token]);
    counts[token] = 0;
  }
}

}  // namespace

void adjust_logits(const SampleRow& row, float* logits, int32_t vocab,
                   std::vector<int32_t>& counts) {
  for (int32_t i = 0; i < row.bias_count; ++i) {
    const auto [token, bias] = row.bias[i];
    if (!in_vocab(token, vocab)) continue;
    if (std::isfinite(bias)) {
      replace(logits[token], double{logits[token]} + bias);
    } else {
      logits[token] += bias;
    }
  }

  const bool repetition = row.repetition_penalty != 1.0F && row.history_len > 0;
  const bool output = (row.presence_penalty != 0.0F || row.frequency_penalty != 0.0F) &&
                      row.output_begin < row.history_len;
  if ((repetition || output) && counts.size() < static_cast<size_t>(vocab)) counts.resize(vocab);
  const std::span<const int32_t> history(row.history, static_cast<size_t>(row.history_len));
  if (repetition) penalize_repetition(row.repetition_penalty, history, logits, vocab, counts);
  if (output) {
    penalize_output(row.presence_penalty, row.frequency_penalty, history.subspan(row.output_begin),
                    logits, vocab, counts);
  }

  for (int32_t i = 0; i < row.barred_count; ++i) {
    if (in_vocab(row.barred[i], vocab)) {
      logits[row.barred[i]] = -std::numeric_limits<float>::infinity();
    }
  }
}

}  // namespace treadle::ops::cpu
