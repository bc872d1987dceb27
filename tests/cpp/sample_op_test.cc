#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "sample_harness.h"

namespace treadle::ops::cpu {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kLargest = std::numeric_limits<float>::max();

SampleRow greedy_row() {
  SampleRow row;
  row.temperature = 0.0F;
  return row;
}

// Every token that shows up in `draws` draws at different positions.
std::set<int32_t> support(const std::vector<float>& logits, SampleRow row, int draws = 400) {
  std::set<int32_t> tokens;
  for (int i = 0; i < draws; ++i) {
    row.position = static_cast<uint32_t>(i);
    tokens.insert(token_of(logits, row));
  }
  return tokens;
}

TEST(SampleOp, GreedyTakesTheLowestIdOfTheLargest) {
  std::mt19937 rng(1);
  SampleRow by_rank;
  by_rank.top_k = 1;
  for (const int32_t n : {1, 2, 15, 16, 17, 63, 64, 65, 1000, 4096, 5003}) {
    std::vector<float> x = normal_logits(rng, n, 1.0F);
    for (int round = 0; round < 8; ++round) {
      const auto a = static_cast<int32_t>(rng() % static_cast<uint32_t>(n));
      const auto b = static_cast<int32_t>(rng() % static_cast<uint32_t>(n));
      std::vector<float> y = x;
      y[a] = y[b] = 50.0F;
      EXPECT_EQ(token_of(y, greedy_row()), std::min(a, b)) << n;
      EXPECT_EQ(token_of(y, by_rank), std::min(a, b)) << n;
    }
  }
  EXPECT_EQ(token_of({-1.0F, -0.0F, 0.0F}, greedy_row()), 1) << "zeros are equal";
  EXPECT_EQ(token_of(std::vector<float>(100, -kLargest), greedy_row()), 0);
  EXPECT_EQ(token_of({-kInf, -5.0F, -kInf}, greedy_row()), 1);
}

TEST(SampleOp, DamagedRowsGiveMinusOneAndDoNotTouchTheirNeighbours) {
  constexpr int32_t kVocab = 100;
  std::mt19937 rng(2);
  for (const float bad : {kNan, kInf}) {
    for (const int32_t at : {0, 50, 99}) {
      for (int kind = 0; kind < 4; ++kind) {
        std::vector<float> x = normal_logits(rng, 3 * kVocab, 1.0F);
        x[kVocab + at] = bad;
        SampleRow row;
        if (kind == 0) row = greedy_row();
        if (kind == 1) row.top_k = 10;
        if (kind == 2) row.top_p = 0.5F;
        row.num_logprobs = 2;
        const Result r = run(x, kVocab, {row, row, row});
        EXPECT_GE(r.tokens[0], 0);
        EXPECT_EQ(r.tokens[1], -1);
        EXPECT_EQ(r.logprobs[1], -kInf);
        EXPECT_EQ(r.top[kMaxTopLogprobs].token, -1);
        EXPECT_EQ(r.top[kMaxTopLogprobs + 1].token, -1);
        EXPECT_GE(r.tokens[2], 0);
      }
    }
  }
}

TEST(SampleOp, AllBarredGivesMinusOne) {
  const std::vector<int32_t> all = {0, 1, 2};
  for (const float temperature : {0.0F, 1.0F}) {
    SampleRow row;
    row.temperature = temperature;
    row.barred = all.data();
    row.barred_count = 3;
    EXPECT_EQ(token_of({1.0F, 2.0F, 3.0F}, row), -1);
    row.barred_count = 2;
    EXPECT_EQ(token_of({1.0F, 2.0F, 3.0F}, row), 2);
  }
  EXPECT_EQ(token_of({-kInf, -kInf}, greedy_row()), -1);
}

TEST(SampleOp, BarredTokensAreNeverDrawn) {
  const std::vector<int32_t> barred = {1, 3, 500, -2};  // ids outside the vocabulary are skipped
  SampleRow row;
  row.barred = barred.data();
  row.barred_count = 4;
  const std::vector<float> x = {0.0F, 9.0F, 0.0F, 9.0F, 0.0F};
  EXPECT_EQ(support(x, row), (std::set<int32_t>{0, 2, 4}));
  row.top_p = 0.999F;
  EXPECT_EQ(support(x, row), (std::set<int32_t>{0, 2, 4}));
  row.top_k = 4;
  EXPECT_EQ(support(x, row), (std::set<int32_t>{0, 2, 4}));
  row.temperature = 1e30F;
  EXPECT_EQ(support(x, row), (std::set<int32_t>{0, 2, 4}));
}

TEST(SampleOp, BiasMovesAndBars) {
  const LogitBias bias[] = {{0, 5.0F}, {2, -kInf}, {77, 1.0F}, {-1, 1.0F}};
  SampleRow row = greedy_row();
  row.bias = bias;
  row.bias_count = 4;
  EXPECT_EQ(token_of({0.0F, 4.0F, 9.0F}, row), 0);
}

TEST(SampleOp, PenaltiesFollowTheirFormulas) {
  // Reported log-probabilities show the logits after penalties, up to a constant.
  const std::vector<float> x = {2.0F, -2.0F, 0.0F, 1.0F, -1.0F, 3.0F};
  const std::vector<int32_t> history = {0, 1, 0, 3, 3, 1, 99, -4};
  SampleRow row = greedy_row();
  row.num_logprobs = 6;
  row.history = history.data();
  row.history_len = 8;
  row.output_begin = 2;  // output: 0 once, 3 twice, 1 once

  const auto differences = [&](const SampleRow& r) {
    const Result result = run_one(x, r);
    std::vector<float> y(6);
    for (int i = 0; i < 6; ++i) y[result.top[i].token] = result.top[i].logprob;
    for (float& v : y) v -= y[5];
    for (float& v : y) v += 3.0F;  // token 5 is never penalised
    return y;
  };
  const auto expect = [](const std::vector<float>& got, const std::vector<float>& want) {
    for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-5) << "token " << i;
  };
  SampleRow repetition = row;
  repetition.repetition_penalty = 2.0F;
  const std::vector<float> repeated = differences(repetition);
  expect({repeated.begin(), repeated.end() - 1}, {1.0F, -4.0F, 0.0F, 0.5F, -1.0F});
  SampleRow presence = row;
  presence.presence_penalty = 0.5F;
  expect(differences(presence), {1.5F, -2.5F, 0.0F, 0.5F, -1.0F, 3.0F});
  SampleRow frequency = row;
  frequency.frequency_penalty = 0.25F;
  expect(differences(frequency), {1.75F, -2.25F, 0.0F, 0.5F, -1.0F, 3.0F});
  SampleRow all = row;
  all.repetition_penalty = 2.0F;
  all.presence_penalty = 0.5F;
  all.frequency_penalty = 0.25F;
  const LogitBias bias[] = {{0, 2.0F}, {2, 1.0F}};
  all.bias = bias;
  all.bias_count = 2;
  expect(differences(all), {4.0F / 2 - 0.75F, -4.0F - 0.75F, 1.0F, 0.5F - 1.0F, -1.0F, 3.0F});
}

TEST(SampleOp, HugePenaltiesNeitherDamageNorBar) {
  const int32_t history[] = {0, 1};
  SampleRow row = greedy_row();
  row.history = history;
  row.history_len = 2;
  row.repetition_penalty = std::numeric_limits<float>::denorm_min();
  EXPECT_EQ(token_of({1.0F, -1.0F, 5.0F}, row), 0);
  row.repetition_penalty = kLargest;
  EXPECT_EQ(token_of({1.0F, -1.0F, -kInf}, row), 0);
  row.repetition_penalty = 1.0F;
  row.frequency_penalty = row.presence_penalty = kLargest;
  EXPECT_EQ(token_of({1.0F, 2.0F}, row), 0) << "both at the lowest number, none barred";
}

TEST(SampleOp, TopKKeepsExactlyKTheLowerIdsFirst) {
  SampleRow row;
  row.top_k = 3;
  EXPECT_EQ(support({1.0F, 2.0F, 1.0F, 1.0F, 2.0F, 1.0F}, row), (std::set<int32_t>{0, 1, 4}));
  row.top_k = 6;
  EXPECT_EQ(support({1.0F, 2.0F, 1.0F, 1.0F, 2.0F, 1.0F}, row).size(), 6U) << "k = vocabulary";
  row.top_k = 1000;
  EXPECT_EQ(support({1.0F, 2.0F, 1.0F}, row).size(), 3U) << "k beyond the vocabulary";
}

TEST(SampleOp, TopPKeepsTheSmallestSetThatReachesP) {
  SampleRow row;
  row.top_p = 0.5F;
  const std::vector<float> four(4, 1.0F);
  EXPECT_EQ(support(four, row), (std::set<int32_t>{0, 1})) << "reaching p exactly is enough";
  row.top_p = std::nextafter(0.5F, 1.0F);
  EXPECT_EQ(support(four, row), (std::set<int32_t>{0, 1, 2}));
  row.top_p = std::numeric_limits<float>::denorm_min();
  EXPECT_EQ(support({0.0F, 0.1F, 0.0F}, row), (std::set<int32_t>{1})) << "always at least one";
  row.top_p = 0.75F;
  row.top_k = 2;  // renormalised: each of the two has 1/2
  EXPECT_EQ(support(four, row), (std::set<int32_t>{0, 1}));
  row.top_p = 0.5F;
  EXPECT_EQ(support(four, row), (std::set<int32_t>{0}));
}

TEST(SampleOp, MinPIsRelativeToTheBest) {
  const float half = std::log(0.5F);
  const std::vector<float> x = {0.0F, half + 0.01F, half - 0.01F, 2 * half};
  SampleRow row;
  row.min_p = 0.5F;
  EXPECT_EQ(support(x, row), (std::set<int32_t>{0, 1}));
  row.top_p = 0.99F;
  EXPECT_EQ(support(x, row), (std::set<int32_t>{0, 1}));
  row.min_p = 1.0F;
  EXPECT_EQ(support({1.0F, 0.0F, 1.0F}, row), (std::set<int32_t>{0, 2}));
}

TEST(SampleOp, ExtremeTemperatures) {
  SampleRow row;
  row.temperature = std::numeric_limits<float>::denorm_min();
  EXPECT_EQ(support({1.0F, 1.001F, -kLargest}, row), (std::set<int32_t>{1}));
  EXPECT_EQ(support({0.0F, -1e-6F, -kLargest}, row), (std::set<int32_t>{0}));
  row.temperature = kLargest;
  EXPECT_EQ(support({1.0F, 9.0F, -9.0F}, row), (std::set<int32_t>{0, 1, 2}));
  row.top_p = 0.5F;
  EXPECT_EQ(support({1.0F, 9.0F, -9.0F}, row), (std::set<int32_t>{0, 1}));
}

TEST(SampleOp, ForcedTokensReportRawLogprobs) {
  const std::vector<float> x = {1.0F, 3.0F, 2.0F, -kInf};
  const LogitBias bias[] = {{0, 100.0F}};
  SampleRow row;
  row.forced_token = 2;
  row.num_logprobs = 2;
  row.bias = bias;
  row.bias_count = 1;
  const Result r = run_one(x, row);
  const double log_sum = std::log(std::exp(1.0) + std::exp(3.0) + std::exp(2.0));
  EXPECT_EQ(r.tokens[0], 2);
  EXPECT_NEAR(r.logprobs[0], 2.0 - log_sum, 1e-6);
  EXPECT_EQ(r.top[0].token, 1);
  EXPECT_NEAR(r.top[0].logprob, 3.0 - log_sum, 1e-6);
  EXPECT_EQ(r.top[1].token, 2);
  row.forced_token = 3;
  EXPECT_EQ(run_one(x, row).logprobs[0], -kInf);
  row.forced_token = 4;
  EXPECT_EQ(run_one(x, row).tokens[0], -1) << "outside the vocabulary";
}

TEST(SampleOp, WorksWithoutLogprobBuffersAndRows) {
  std::vector<float> x = {1.0F, 2.0F};
  int32_t token = -7;
  SampleRow row = greedy_row();
  row.num_logprobs = 2;
  SampleParams p;
  p.logits = x.data();
  p.rows = &row;
  p.num_rows = 1;
  p.vocab = 2;
  p.tokens = &token;
  ThreadPool pool(2);
  sample(pool, p);
  EXPECT_EQ(token, 1);
  sample(pool, SampleParams{});
}

}  // namespace
}  // namespace treadle::ops::cpu
