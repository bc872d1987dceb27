#include "sampler/validate.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "ops/sample_params.h"
#include "treadle/error.h"

namespace treadle::sampler {
namespace {

std::string text(int32_t v) { return std::to_string(v); }

std::string text(float v) {
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, "%.9g", static_cast<double>(v));
  return buffer;
}

template <typename T>
[[noreturn]] void refuse(const std::string& field, T value, const std::string& right) {
  throw Error(ErrorCode::kInvalidArgument, field + " is " + text(value) + ": " + right);
}

void check_range(const char* field, int32_t value, int32_t low, int32_t high) {
  if (value < low || value > high) {
    refuse(field, value, "it must be from " + text(low) + " to " + text(high));
  }
}

void check_finite(const char* field, float value) {
  if (!std::isfinite(value)) refuse(field, value, "it must be a finite number");
}

void check_token(const std::string& field, int32_t token, int32_t vocab_size) {
  if (token < 0 || token >= vocab_size) {
    refuse(field, token,
           "token ids are from 0 to " + text(vocab_size - 1) + " (the vocabulary has " +
               text(vocab_size) + " tokens)");
  }
}

std::string item(const char* field, size_t i) {
  return std::string(field) + "[" + std::to_string(i) + "]";
}

void check_words(const char* field, const std::vector<std::vector<int32_t>>& words,
                 int32_t vocab_size) {
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i].empty()) {
      throw Error(ErrorCode::kInvalidArgument,
                  item(field, i) + " has 0 tokens: a word must have at least one");
    }
    for (size_t j = 0; j < words[i].size(); ++j) {
      const int32_t token = words[i][j];
      if (token < 0 || token >= vocab_size) {
        check_token(item(field, i) + "[" + std::to_string(j) + "]", token, vocab_size);
      }
    }
  }
}

void check_lengths(const SamplingParams& p) {
  if (p.max_new_tokens < 1) refuse("max_new_tokens", p.max_new_tokens, "it must be at least 1");
  if (p.min_new_tokens < 0) refuse("min_new_tokens", p.min_new_tokens, "it must be at least 0");
  if (p.min_new_tokens > p.max_new_tokens) {
    refuse("min_new_tokens", p.min_new_tokens,
           "it must be at most max_new_tokens, which is " + text(p.max_new_tokens));
  }
}

void check_shape_of_distribution(const SamplingParams& p) {
  check_finite("temperature", p.temperature);
  if (p.temperature < 0.0F) {
    refuse("temperature", p.temperature, "it must be at least 0 (0 is greedy)");
  }
  if (p.top_k < 0) refuse("top_k", p.top_k, "it must be at least 0 (0 keeps all tokens)");
  if (!(p.top_p > 0.0F && p.top_p <= 1.0F)) {
    refuse("top_p", p.top_p, "it must be above 0 and at most 1 (1 keeps all tokens)");
  }
  if (!(p.min_p >= 0.0F && p.min_p <= 1.0F)) {
    refuse("min_p", p.min_p, "it must be from 0 to 1 (0 keeps all tokens)");
  }
}

void check_penalties(const SamplingParams& p) {
  check_finite("repetition_penalty", p.repetition_penalty);
  if (p.repetition_penalty <= 0.0F) {
    refuse("repetition_penalty", p.repetition_penalty, "it must be above 0 (1 changes nothing)");
  }
  check_finite("presence_penalty", p.presence_penalty);
  check_finite("frequency_penalty", p.frequency_penalty);
}

void check_bias(const SamplingParams& p, int32_t vocab_size) {
  std::vector<int32_t> tokens;
  tokens.reserve(p.logit_bias.size());
  for (const auto& [token, bias] : p.logit_bias) {
    check_token("token id in logit_bias", token, vocab_size);
    if (std::isnan(bias) || (std::isinf(bias) && bias > 0.0F)) {
      refuse("logit_bias of token " + text(token), bias,
             "it must be a finite number, or -inf to bar the token");
    }
    tokens.push_back(token);
  }
  std::sort(tokens.begin(), tokens.end());
  const auto twice = std::adjacent_find(tokens.begin(), tokens.end());
  if (twice != tokens.end()) {
    throw Error(ErrorCode::kInvalidArgument, "logit_bias names token " + text(*twice) +
                                                 " more than once: give each token one bias");
  }
}

// What is barred at every step must leave a token to choose.
void check_choice_left(const SamplingParams& p, int32_t vocab_size) {
  std::vector<int32_t> barred;
  for (const auto& [token, bias] : p.logit_bias) {
    if (std::isinf(bias)) barred.push_back(token);
  }
  for (const auto& word : p.bad_words) {
    if (word.size() == 1) barred.push_back(word[0]);
  }
  std::sort(barred.begin(), barred.end());
  barred.erase(std::unique(barred.begin(), barred.end()), barred.end());
  if (barred.size() >= static_cast<size_t>(vocab_size)) {
    throw Error(ErrorCode::kInvalidArgument, "bad_words and logit_bias bar all " +
                                                 text(vocab_size) +
                                                 " tokens: leave at least one to choose");
  }
}

}  // namespace

void validate(const SamplingParams& params, int32_t vocab_size, int32_t max_batch_size) {
  check_lengths(params);
  check_shape_of_distribution(params);
  check_penalties(params);
  check_bias(params, vocab_size);
  check_words("bad_words", params.bad_words, vocab_size);
  check_words("stop_words", params.stop_words, vocab_size);
  for (size_t i = 0; i < params.stop_token_ids.size(); ++i) {
    check_token(item("stop_token_ids", i), params.stop_token_ids[i], vocab_size);
  }
  check_choice_left(params, vocab_size);
  check_range("logprobs", params.logprobs, -1, ops::kMaxTopLogprobs);
  check_range("prompt_logprobs", params.prompt_logprobs, -1, ops::kMaxTopLogprobs);
  if (params.n < 1 || params.n > max_batch_size) {
    refuse("n", params.n, "it must be from 1 to max_batch_size, which is " + text(max_batch_size));
  }
}

}  // namespace treadle::sampler
