#include "engine/step_sampler.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <utility>

#include "sampler/pack_rows.h"

namespace treadle {
namespace {

/// A row whose token nobody reads: the cheapest there is.
constexpr ops::SampleRow kUnread = {.temperature = 0.0F};

}  // namespace

StepSampler::StepSampler(const ops::Ops& ops, int32_t vocab_size)
    : ops_(ops), vocab_size_(vocab_size) {}

StepSampler::~StepSampler() {
  for (const Buffer& buffer : {rows_, tokens_, logprobs_, top_}) {
    ops_.release(ops_.self, buffer.data);
  }
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

template <class T>
T* StepSampler::reserve(Buffer& buffer, size_t count) {
  // Growing moves the buffer, and with it what was recorded of launches is lost: start large.
  constexpr size_t kLeastBytes = size_t{64} << 10;
  const size_t bytes = std::max(kLeastBytes, std::bit_ceil(count * sizeof(T)));
  if (buffer.bytes < bytes) {
    ops_.release(ops_.self, std::exchange(buffer.data, nullptr));
    buffer.bytes = 0;
    buffer.data = ops_.alloc(ops_.self, bytes);
    buffer.bytes = bytes;
  }
  return static_cast<T*>(buffer.data);
}

void StepSampler::prepare(const std::vector<StepRow>& rows, size_t padded_count,
                          int32_t pending_tokens) {
  sample_rows_.clear();
  wants_logprobs_ = wants_top_ = false;
  for (const auto& [generation, source, prompt_token, token_index] : rows) {
    if (generation == nullptr) {
      sample_rows_.push_back(kUnread);
      continue;
    }
    const sampler::RowBuilder& builder = generation->request.rows;
    const ops::SampleRow& row = sample_rows_.emplace_back(
        prompt_token >= 0 ? builder.build_prompt(prompt_token)
                          : builder.build(source->ids, source->prompt_len, pending_tokens,
                                          generation->index, generation->scratch));
    wants_logprobs_ |= row.num_logprobs >= 0;
    wants_top_ |= row.num_logprobs > 0;
  }
  sample_rows_.resize(std::max(rows.size(), padded_count), kUnread);
  const size_t count = sample_rows_.size();
  if (count == 0) return;

  packed_.resize(sampler::packed_bytes(sample_rows_));
  void* block = reserve<char>(rows_, packed_.size());
  sampler::pack_rows(sample_rows_, packed_.data(), block);
  ops_.upload(ops_.self, block, packed_.data(), packed_.size(), {});
  reserve<int32_t>(tokens_, count);
  if (wants_logprobs_) reserve<float>(logprobs_, count);
  if (wants_top_) reserve<ops::TopLogprob>(top_, count * ops::kMaxTopLogprobs);
}

void StepSampler::launch(model::Decoder& decoder) {
  const auto total = static_cast<int32_t>(sample_rows_.size());
  const int32_t per_pass = decoder.max_logit_rows();
  for (int32_t begin = 0; begin < total; begin += per_pass) {
    const int32_t count = std::min(per_pass, total - begin);
    float* logits = decoder.logits(begin, count);
    const auto from = [&]<class T>(T* array, int32_t per_row = 1) {
      return array + ptrdiff_t{begin} * per_row;
    };
    ops_.sample(
        ops_.self,
        {.logits = logits,
         .rows = from(static_cast<const ops::SampleRow*>(rows_.data)),
         .num_rows = count,
         .vocab = vocab_size_,
         .tokens = from(static_cast<int32_t*>(tokens_.data)),
         .logprobs = wants_logprobs_ ? from(static_cast<float*>(logprobs_.data)) : nullptr,
         .top = wants_top_ ? from(static_cast<ops::TopLogprob*>(top_.data), ops::kMaxTopLogprobs)
                           : nullptr},
        {});
  }
}

uint64_t StepSampler::launch_shape() const {
  return uint64_t{sample_rows_.size()} | uint64_t{wants_logprobs_} << 30 |
         uint64_t{wants_top_} << 31;
}

template <class T>
void StepSampler::download(std::vector<T>& host, const Buffer& buffer, size_t count) {
  host.resize(count);
  ops_.download(ops_.self, host.data(), buffer.data, count * sizeof(T), {});
}

void StepSampler::download(size_t count, Arrival& arrival) {
  arrival.num_logprobs.clear();
  if (count == 0) return;
  for (size_t i = 0; i < count; ++i) arrival.num_logprobs.push_back(sample_rows_[i].num_logprobs);
  download(arrival.tokens, tokens_, count);
  if (wants_logprobs_) download(arrival.logprobs, logprobs_, count);
  if (wants_top_) download(arrival.top, top_, count * ops::kMaxTopLogprobs);
}

void StepSampler::unpack(const std::vector<StepRow>& rows, const Arrival& arrival,
                         std::vector<StepResult>& results) {
  results.assign(rows.size(), {});
  for (size_t i = 0; i < rows.size(); ++i) {
    StepResult& result = results[i];
    result.token = arrival.tokens[i];
    const int32_t num_logprobs = arrival.num_logprobs[i];
    if (num_logprobs < 0) continue;
    if (result.token < 0) {
      // A prompt position keeps its place in the list, whatever the model made of it.
      const int32_t prompt_token = rows[i].prompt_token;
      if (prompt_token < 0) continue;
      result.logprobs.emplace().chosen = {.token_id = prompt_token,
                                          .logprob = std::numeric_limits<float>::quiet_NaN()};
      continue;
    }
    PositionLogprobs& at = result.logprobs.emplace();
    at.chosen = {.token_id = result.token, .logprob = arrival.logprobs[i]};
    for (int32_t k = 0; k < num_logprobs; ++k) {
      const ops::TopLogprob& top = arrival.top[i * ops::kMaxTopLogprobs + static_cast<size_t>(k)];
      if (top.token < 0) break;  // fewer tokens than asked for have a finite logit
      at.top.push_back({.token_id = top.token, .logprob = top.logprob});
    }
  }
}

}  // namespace treadle
