#include <algorithm>
#include <limits>
#include <random>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "sampler/row_builder.h"

namespace treadle::sampler {
namespace {

using Tokens = std::vector<int32_t>;

std::set<int32_t> barred(const ops::SampleRow& row) {
  return {row.barred, row.barred + row.barred_count};
}

std::set<int32_t> barred_after(const RowBuilder& builder, const Tokens& prompt,
                               const Tokens& output) {
  Tokens history = prompt;
  history.insert(history.end(), output.begin(), output.end());
  Tokens scratch;
  return barred(builder.build(history, static_cast<int32_t>(prompt.size()), 0, 0, scratch));
}

TEST(RowBuilder, CopiesParametersAndState) {
  SamplingParams params;
  params.temperature = 0.7F;
  params.top_k = 40;
  params.top_p = 0.9F;
  params.min_p = 0.05F;
  params.repetition_penalty = 1.1F;
  params.presence_penalty = 0.2F;
  params.frequency_penalty = 0.3F;
  params.logit_bias = {{4, 1.5F}, {6, -std::numeric_limits<float>::infinity()}};
  params.logprobs = 3;
  params.seed = 1234567890123ULL;
  const RowBuilder builder(params, Tokens{2}, 99);
  const Tokens history = {5, 6, 7, 8, 9};
  Tokens scratch;
  const ops::SampleRow row = builder.build(history, 3, 0, 5, scratch);
  EXPECT_EQ(row.temperature, 0.7F);
  EXPECT_EQ(row.top_k, 40);
  EXPECT_EQ(row.top_p, 0.9F);
  EXPECT_EQ(row.min_p, 0.05F);
  EXPECT_EQ(row.repetition_penalty, 1.1F);
  EXPECT_EQ(row.presence_penalty, 0.2F);
  EXPECT_EQ(row.frequency_penalty, 0.3F);
  ASSERT_EQ(row.bias_count, 2);
  EXPECT_EQ(row.bias[0].token, 4);
  EXPECT_EQ(row.bias[0].bias, 1.5F);
  EXPECT_EQ(row.bias[1].token, 6);
  EXPECT_EQ(row.num_logprobs, 3);
  EXPECT_EQ(row.forced_token, -1);
  EXPECT_EQ(row.seed, 1234567890123ULL);
  EXPECT_EQ(row.stream, 5U);
  EXPECT_EQ(row.position, 2U);
  EXPECT_EQ(row.history, history.data());
  EXPECT_EQ(row.history_len, 5);
  EXPECT_EQ(row.output_begin, 3);
  EXPECT_EQ(row.barred_count, 0);
}

TEST(RowBuilder, FallbackSeedAndNoHistoryWithoutPenalties) {
  const RowBuilder builder(SamplingParams{}, Tokens{2}, 99);
  const Tokens history = {5, 6, 7};
  Tokens scratch;
  const ops::SampleRow row = builder.build(history, 3, 0, 0, scratch);
  EXPECT_EQ(builder.seed(), 99U);
  EXPECT_EQ(row.seed, 99U);
  EXPECT_EQ(row.position, 0U);
  EXPECT_EQ(row.history, nullptr);
  EXPECT_EQ(row.history_len, 0);
}

TEST(RowBuilder, PromptRow) {
  SamplingParams params;
  params.prompt_logprobs = 7;
  const ops::SampleRow row = RowBuilder(params, Tokens{}, 0).build_prompt(42);
  EXPECT_EQ(row.forced_token, 42);
  EXPECT_EQ(row.num_logprobs, 7);
  EXPECT_EQ(row.bias_count, 0);
  EXPECT_EQ(row.repetition_penalty, 1.0F);
}

TEST(RowBuilder, BadWordsBarTheirLastToken) {
  SamplingParams params;
  params.bad_words = {{9}, {1, 2}, {3, 1, 4}, {1, 1, 5}};
  const RowBuilder builder(params, Tokens{}, 0);
  EXPECT_EQ(barred_after(builder, {8}, {}), (std::set<int32_t>{9}));
  EXPECT_EQ(barred_after(builder, {1}, {}), (std::set<int32_t>{9, 2}));
  EXPECT_EQ(barred_after(builder, {3}, {1}), (std::set<int32_t>{9, 2, 4}));
  EXPECT_EQ(barred_after(builder, {3}, {1, 1}), (std::set<int32_t>{9, 2, 5}));
  EXPECT_EQ(barred_after(builder, {3}, {1, 1, 8}), (std::set<int32_t>{9}));
}

TEST(RowBuilder, MinNewTokensBarsEveryWayToEnd) {
  SamplingParams params;
  params.min_new_tokens = 3;
  params.stop_token_ids = {7};
  params.stop_words = {{6}, {1, 4}};
  params.bad_words = {{9}};
  for (const bool ignore_eos : {false, true}) {
    params.ignore_eos = ignore_eos;
    const RowBuilder builder(params, Tokens{2, -1}, 0);
    EXPECT_EQ(barred_after(builder, {1}, {}), (std::set<int32_t>{2, 6, 7, 9}))
        << "stop words do not begin in the prompt";
    EXPECT_EQ(barred_after(builder, {1}, {1}), (std::set<int32_t>{2, 4, 6, 7, 9}));
    EXPECT_EQ(barred_after(builder, {1}, {1, 5}), (std::set<int32_t>{2, 6, 7, 9}));
    EXPECT_EQ(barred_after(builder, {1}, {1, 5, 1}), (std::set<int32_t>{9}));
  }
}

TEST(RowBuilder, EqualsANaiveSearchAndAllocatesOnce) {
  std::mt19937 rng(5);
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(rng);
  };
  const auto word = [&](int length) {
    Tokens w(static_cast<size_t>(length));
    for (int32_t& t : w) t = pick(0, 3);
    return w;
  };
  for (int round = 0; round < 500; ++round) {
    SamplingParams params;
    for (int i = pick(0, 5); i > 0; --i) params.bad_words.push_back(word(pick(1, 4)));
    for (int i = pick(0, 5); i > 0; --i) params.stop_words.push_back(word(pick(1, 4)));
    params.min_new_tokens = pick(0, 10);
    const Tokens eos = {pick(0, 3)};
    const RowBuilder builder(params, eos, 0);

    Tokens history = word(pick(1, 5));
    const size_t prompt = history.size();
    Tokens scratch;
    size_t capacity = 0;
    for (int step = 0; step < 20; ++step) {
      std::set<int32_t> expected;
      const auto completes = [&](const Tokens& w, size_t from) {
        const size_t n = w.size() - 1;
        return n <= history.size() - from &&
               std::equal(w.begin(), w.end() - 1, history.end() - static_cast<int>(n));
      };
      for (const Tokens& w : params.bad_words) {
        if (completes(w, 0)) expected.insert(w.back());
      }
      if (step < params.min_new_tokens) {
        expected.insert(eos[0]);
        for (const Tokens& w : params.stop_words) {
          if (completes(w, prompt)) expected.insert(w.back());
        }
      }
      const ops::SampleRow row =
          builder.build(history, static_cast<int32_t>(prompt), 0, 0, scratch);
      ASSERT_EQ(barred(row), expected) << "round " << round << " step " << step;
      if (step == 0) capacity = scratch.capacity();
      ASSERT_EQ(scratch.capacity(), capacity) << "allocated after the first step";
      history.push_back(pick(0, 3));
    }
  }
}

}  // namespace
}  // namespace treadle::sampler
