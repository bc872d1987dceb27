#include "sampler/row_builder.h"

#include <algorithm>
#include <utility>

namespace treadle::sampler {
namespace {

void sort_unique(std::vector<int32_t>& ids) {
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
}

int32_t before_last(const std::vector<int32_t>& word) { return word[word.size() - 2]; }

// Words of one token go to `single`, the others to `several`, ordered by their last but one token.
void split_words(const std::vector<std::vector<int32_t>>& words, std::vector<int32_t>& single,
                 std::vector<std::vector<int32_t>>& several) {
  for (const auto& word : words) {
    if (word.size() == 1) {
      single.push_back(word[0]);
    } else if (word.size() > 1) {
      several.push_back(word);
    }
  }
  std::stable_sort(several.begin(), several.end(),
                   [](const auto& a, const auto& b) { return before_last(a) < before_last(b); });
}

}  // namespace

RowBuilder::RowBuilder(const SamplingParams& params, std::span<const int32_t> eos_token_ids,
                       uint64_t fallback_seed)
    : min_new_tokens_(params.min_new_tokens), prompt_logprobs_(params.prompt_logprobs) {
  base_.temperature = params.temperature;
  base_.top_k = params.top_k;
  base_.top_p = params.top_p;
  base_.min_p = params.min_p;
  base_.repetition_penalty = params.repetition_penalty;
  base_.presence_penalty = params.presence_penalty;
  base_.frequency_penalty = params.frequency_penalty;
  base_.seed = params.seed.value_or(fallback_seed);
  base_.num_logprobs = params.logprobs;
  uses_history_ = params.repetition_penalty != 1.0F || params.presence_penalty != 0.0F ||
                  params.frequency_penalty != 0.0F;

  bias_.reserve(params.logit_bias.size());
  for (const auto& [token, bias] : params.logit_bias) bias_.push_back({token, bias});

  split_words(params.bad_words, barred_always_, bad_words_);
  sort_unique(barred_always_);
  if (min_new_tokens_ > 0) {
    barred_early_ = barred_always_;
    split_words(params.stop_words, barred_early_, stop_words_);
    barred_early_.insert(barred_early_.end(), params.stop_token_ids.begin(),
                         params.stop_token_ids.end());
    for (const int32_t id : eos_token_ids) {
      if (id >= 0) barred_early_.push_back(id);
    }
    sort_unique(barred_early_);
  }
}

void RowBuilder::append_completions(const Words& words, std::span<const int32_t> text,
                                    std::vector<int32_t>& out) {
  if (words.empty() || text.empty()) return;
  const int32_t newest = text.back();
  auto word = std::lower_bound(words.begin(), words.end(), newest,
                               [](const auto& w, int32_t t) { return before_last(w) < t; });
  for (; word != words.end() && before_last(*word) == newest; ++word) {
    const size_t prefix = word->size() - 1;
    if (prefix <= text.size() &&
        std::equal(word->begin(), word->end() - 1, text.end() - static_cast<ptrdiff_t>(prefix))) {
      out.push_back(word->back());
    }
  }
}

ops::SampleRow RowBuilder::build(std::span<const int32_t> history, int32_t output_begin,
                                 int32_t pending, int32_t index,
                                 std::vector<int32_t>& scratch) const {
  const std::span<const int32_t> output = history.subspan(static_cast<size_t>(output_begin));
  ops::SampleRow row = base_;
  row.stream = static_cast<uint32_t>(index);
  row.position = static_cast<uint32_t>(output.size()) + static_cast<uint32_t>(pending);
  row.bias = bias_.data();
  row.bias_count = static_cast<int32_t>(bias_.size());
  if (uses_history_) {
    row.history = history.data();
    row.history_len = static_cast<int32_t>(history.size());
    row.output_begin = output_begin;
  }

  const bool early = row.position < static_cast<uint32_t>(min_new_tokens_);
  const std::vector<int32_t>& fixed = early ? barred_early_ : barred_always_;
  row.barred = fixed.data();
  row.barred_count = static_cast<int32_t>(fixed.size());
  if (bad_words_.empty() && (!early || stop_words_.empty())) return row;

  // Most steps complete no word; then the fixed list serves without a copy.
  scratch.reserve(std::max(barred_early_.size(), barred_always_.size()) + bad_words_.size() +
                  stop_words_.size());
  scratch.clear();
  append_completions(bad_words_, history, scratch);
  if (early) append_completions(stop_words_, output, scratch);
  if (scratch.empty()) return row;
  scratch.insert(scratch.end(), fixed.begin(), fixed.end());
  row.barred = scratch.data();
  row.barred_count = static_cast<int32_t>(scratch.size());
  return row;
}

ops::SampleRow RowBuilder::build_prompt(int32_t token) const {
  ops::SampleRow row;
  row.forced_token = token;
  row.num_logprobs = prompt_logprobs_;
  return row;
}

}  // namespace treadle::sampler
