#include "engine/step_sampler.h"

#include <algorithm>
#include <limits>

namespace treadle {

StepSampler::StepSampler(const ops::Ops& ops, int32_t vocab_size, int32_t max_rows_per_pass)
    : ops_(ops), vocab_size_(vocab_size) {
  const auto rows = static_cast<size_t>(max_rows_per_pass);
  host_tokens_.resize(rows);
  host_logprobs_.resize(rows);
  tokens_ = static_cast<int32_t*>(ops_.alloc(ops_.self, rows * sizeof(int32_t)));
  logprobs_ = static_cast<float*>(ops_.alloc(ops_.self, rows * sizeof(float)));
  top_ = static_cast<ops::TopLogprob*>(
      ops_.alloc(ops_.self, rows * ops::kMaxTopLogprobs * sizeof(ops::TopLogprob)));
}

StepSampler::~StepSampler() {
  ops_.release(ops_.self, tokens_);
  ops_.release(ops_.self, logprobs_);
  ops_.release(ops_.self, top_);
}

void StepSampler::collect(const Decision& decision, std::vector<StepRow>& rows) {
  rows.clear();
  int32_t token_index = 0;
  for (const auto& [sequence, query_len] : decision.scheduled) {
    auto* generation = static_cast<Generation*>(sequence);
    LiveRequest& request = generation->request;
    const int32_t begin = generation->kv.num_tokens;
    const int32_t end = begin + query_len;
    if (request.wants_prompt_logprobs() && !request.forked && generation->generated() == 0) {
      for (int32_t p = std::max(begin, generation->logprobs_until); p < end; ++p) {
        if (p + 1 >= generation->prompt_len) break;
        rows.push_back({.generation = generation,
                        .source = generation,
                        .prompt_token = generation->ids[p + 1],
                        .token_index = token_index + p - begin});
        generation->logprobs_until = p + 1;
      }
    }
    if (end == static_cast<int32_t>(generation->ids.size())) {
      const size_t count = request.forked ? 1 : request.generations.size();
      for (size_t i = 0; i < count; ++i) {
        rows.push_back({.generation = count == 1 ? generation : request.generations[i].get(),
                        .source = generation,
                        .prompt_token = -1,
                        .token_index = token_index + query_len - 1});
      }
    }
    token_index += query_len;
  }
}

void StepSampler::run(const std::vector<StepRow>& rows, model::Decoder& decoder,
                      std::vector<StepResult>& results) {
  results.assign(rows.size(), {});
  const auto per_pass = static_cast<size_t>(decoder.max_logit_rows());
  for (size_t begin = 0; begin < rows.size(); begin += per_pass) {
    const size_t count = std::min(per_pass, rows.size() - begin);
    float* logits = decoder.logits(static_cast<int32_t>(begin), static_cast<int32_t>(count));
    run_pass(rows, begin, count, logits, results);
  }
}

void StepSampler::run_pass(const std::vector<StepRow>& rows, size_t begin, size_t count,
                           float* logits, std::vector<StepResult>& results) {
  sample_rows_.clear();
  bool any_logprobs = false;
  bool any_top = false;
  for (size_t i = begin; i < begin + count; ++i) {
    const auto& [generation, source, prompt_token, token_index] = rows[i];
    const sampler::RowBuilder& builder = generation->request.rows;
    sample_rows_.push_back(prompt_token >= 0
                               ? builder.build_prompt(prompt_token)
                               : builder.build(source->ids, source->prompt_len, generation->index,
                                               generation->scratch));
    any_logprobs |= sample_rows_.back().num_logprobs >= 0;
    any_top |= sample_rows_.back().num_logprobs > 0;
  }
  ops_.sample(ops_.self,
              {.logits = logits,
               .rows = sample_rows_.data(),
               .num_rows = static_cast<int32_t>(count),
               .vocab = vocab_size_,
               .tokens = tokens_,
               .logprobs = logprobs_,
               .top = top_},
              {});
  ops_.download(ops_.self, host_tokens_.data(), tokens_, count * sizeof(int32_t), {});
  if (any_logprobs) {
    ops_.download(ops_.self, host_logprobs_.data(), logprobs_, count * sizeof(float), {});
  }
  if (any_top) {
    host_top_.resize(count * ops::kMaxTopLogprobs);
    ops_.download(ops_.self, host_top_.data(), top_, host_top_.size() * sizeof(ops::TopLogprob),
                  {});
  }
  ops_.synchronize(ops_.self, {});

  for (size_t i = 0; i < count; ++i) {
    StepResult& result = results[begin + i];
    result.token = host_tokens_[i];
    const int32_t num_logprobs = sample_rows_[i].num_logprobs;
    if (num_logprobs < 0) continue;
    if (result.token < 0) {
      // A prompt position keeps its place in the list, whatever the model made of it.
      const int32_t prompt_token = rows[begin + i].prompt_token;
      if (prompt_token < 0) continue;
      result.logprobs.emplace().chosen = {.token_id = prompt_token,
                                          .logprob = std::numeric_limits<float>::quiet_NaN()};
      continue;
    }
    PositionLogprobs& at = result.logprobs.emplace();
    at.chosen = {.token_id = result.token, .logprob = host_logprobs_[i]};
    for (int32_t k = 0; k < num_logprobs; ++k) {
      const ops::TopLogprob& top = host_top_[i * ops::kMaxTopLogprobs + static_cast<size_t>(k)];
      if (top.token < 0) break;  // fewer tokens than asked for have a finite logit
      at.top.push_back({.token_id = top.token, .logprob = top.logprob});
    }
  }
}

}  // namespace treadle
