#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "ops/cpu/sample.h"
#include "ops/cpu/thread_pool.h"
#include "ops/philox.h"
#include "sample_reference.h"

namespace treadle::ops::cpu {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kLargest = std::numeric_limits<float>::max();

struct Result {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
  std::vector<TopLogprob> top;  // [R][kMaxTopLogprobs]
};

Result run(std::vector<float> logits, int32_t vocab, const std::vector<SampleRow>& rows,
           int threads = 1) {
  Result r;
  r.tokens.assign(rows.size(), -7);
  r.logprobs.assign(rows.size(), -7.0F);
  r.top.assign(rows.size() * kMaxTopLogprobs, {-7, -7.0F});
  SampleParams p;
  p.logits = logits.data();
  p.rows = rows.data();
  p.num_rows = static_cast<int32_t>(rows.size());
  p.vocab = vocab;
  p.tokens = r.tokens.data();
  p.logprobs = r.logprobs.data();
  p.top = r.top.data();
  ThreadPool pool(threads);
  sample(pool, p);
  return r;
}

Result run_one(const std::vector<float>& logits, const SampleRow& row) {
  return run(logits, static_cast<int32_t>(logits.size()), {row});
}

int32_t token_of(const std::vector<float>& logits, const SampleRow& row) {
  return run_one(logits, row).tokens[0];
}

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

std::vector<float> normal_logits(std::mt19937& rng, int32_t n, float sigma) {
  std::normal_distribution<float> normal(0.0F, sigma);
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) v = normal(rng);
  return x;
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

TEST(SampleOp, DrawsFollowTheDistribution) {
  constexpr int kDraws = 200000;
  std::mt19937 rng(3);
  const std::vector<float> x = normal_logits(rng, 40, 1.5F);
  SampleRow row;
  row.temperature = 0.8F;
  for (const int32_t top_k : {0, 12}) {
    row.top_k = top_k;
    const reference::Kept kept = reference::kept_tokens(row, reference::adjusted(row, x));
    const double total = std::accumulate(kept.weights.begin(), kept.weights.end(), 0.0);
    std::map<int32_t, int> counts;
    constexpr int kBatch = 1000;
    std::vector<float> logits;
    for (int i = 0; i < kBatch; ++i) logits.insert(logits.end(), x.begin(), x.end());
    for (int begin = 0; begin < kDraws; begin += kBatch) {
      std::vector<SampleRow> rows(kBatch, row);
      for (int i = 0; i < kBatch; ++i) {
        rows[i].seed = 11;
        rows[i].position = static_cast<uint32_t>(begin + i);
      }
      for (const int32_t t : run(logits, 40, rows).tokens) ++counts[t];
    }
    double chi2 = 0.0;
    for (size_t i = 0; i < kept.tokens.size(); ++i) {
      const double expected = kDraws * kept.weights[i] / total;
      const double difference = counts[kept.tokens[i]] - expected;
      chi2 += difference * difference / expected;
      counts.erase(kept.tokens[i]);
    }
    EXPECT_TRUE(counts.empty()) << "a token that is not kept was drawn";
    // One in a million for 39 and 11 degrees of freedom.
    EXPECT_LT(chi2, top_k == 0 ? 96.0 : 49.0);
  }
}

// A random row with everything a request may ask for.
struct RandomCase {
  std::vector<float> logits;
  std::vector<int32_t> history, barred;
  std::vector<LogitBias> bias;
  SampleRow row;
};

RandomCase random_case(std::mt19937& rng, int32_t vocab) {
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(rng);
  };
  const auto real = [&](double low, double high) {
    return static_cast<float>(std::uniform_real_distribution<double>(low, high)(rng));
  };
  RandomCase c;
  c.logits = normal_logits(rng, vocab, real(0.1, 6.0));
  if (pick(0, 2) == 0) {  // many ties
    for (float& v : c.logits) v = std::round(v);
  }
  SampleRow& row = c.row;
  row.temperature = real(0.2, 2.0);
  if (pick(0, 1) == 0) row.top_k = pick(0, 3) == 0 ? pick(2, vocab + 5) : pick(2, 60);
  if (pick(0, 1) == 0) row.top_p = real(0.05, 1.0);
  if (pick(0, 3) == 0) row.min_p = real(0.0, 0.5);
  if (pick(0, 5) == 0) row.temperature = 0.0F;
  row.seed = rng();
  row.stream = static_cast<uint32_t>(pick(0, 3));
  row.position = static_cast<uint32_t>(pick(0, 5000));
  if (pick(0, 1) == 0) {
    c.history.resize(static_cast<size_t>(pick(1, 60)));
    for (int32_t& t : c.history) t = pick(0, std::min(vocab - 1, 20));
    row.history_len = static_cast<int32_t>(c.history.size());
    row.output_begin = pick(0, row.history_len);
    if (pick(0, 1) == 0) row.repetition_penalty = real(0.5, 2.0);
    if (pick(0, 1) == 0) row.presence_penalty = real(-1.0, 1.0);
    if (pick(0, 1) == 0) row.frequency_penalty = real(-1.0, 1.0);
  }
  if (pick(0, 2) == 0) {
    for (int32_t t = 0; t < vocab; t += 1 + vocab / 10) c.bias.push_back({t, real(-5.0, 5.0)});
    row.bias_count = static_cast<int32_t>(c.bias.size());
  }
  if (pick(0, 2) == 0) {
    for (int i = pick(0, 10); i > 0; --i) c.barred.push_back(pick(1, vocab - 1));
    row.barred_count = static_cast<int32_t>(c.barred.size());
  }
  if (pick(0, 1) == 0) row.num_logprobs = pick(0, 64);
  return c;
}

void link(RandomCase& c) {
  c.row.history = c.history.data();
  c.row.bias = c.bias.data();
  c.row.barred = c.barred.data();
}

TEST(SampleOp, EqualsTheReferenceOnRandomRows) {
  std::mt19937 rng(4);
  int unsure = 0;
  for (int round = 0; round < 4000; ++round) {
    const int32_t sizes[] = {2, 17, 100, 1000, 1024, 5000};
    const int32_t vocab = sizes[rng() % (round % 10 == 0 ? 6 : 5)];
    RandomCase c = random_case(rng, vocab);
    link(c);
    const Result got = run_one(c.logits, c.row);
    const int32_t token = got.tokens[0];
    const std::vector<double> x = reference::adjusted(c.row, c.logits);
    ASSERT_GE(token, 0) << "round " << round;
    if (c.row.temperature == 0.0F) {
      ASSERT_EQ(token, reference::ranked(x)[0]) << "round " << round;
    } else {
      const reference::Kept kept = reference::kept_tokens(c.row, x);
      unsure += kept.near_boundary;
      const double u = sample_uniform(c.row.seed, c.row.stream, c.row.position);
      const reference::Slot slot = reference::slot_of(kept, token);
      if (!kept.near_boundary) {
        ASSERT_LE(slot.low, u + 1e-5) << "round " << round << " token " << token;
        ASSERT_GE(slot.high, u - 1e-5) << "round " << round << " token " << token;
      }
    }
    if (c.row.num_logprobs < 0) {
      ASSERT_EQ(got.logprobs[0], -7.0F) << "not asked for, not written";
      continue;
    }
    const std::vector<double> logprobs = reference::log_softmax(x);
    ASSERT_NEAR(got.logprobs[0], logprobs[token], 1e-5 * (1 + std::fabs(logprobs[token])));
    const std::vector<int32_t> order = reference::ranked(x);
    for (size_t i = 0; i < static_cast<size_t>(kMaxTopLogprobs); ++i) {
      if (i >= static_cast<size_t>(c.row.num_logprobs)) {
        ASSERT_EQ(got.top[i].token, -7) << "not asked for, not written";
      } else if (i >= order.size()) {
        ASSERT_EQ(got.top[i].token, -1);
      } else {
        ASSERT_EQ(got.top[i].token, order[i]) << "round " << round << " place " << i;
        ASSERT_NEAR(got.top[i].logprob, logprobs[order[i]],
                    1e-5 * (1 + std::fabs(logprobs[order[i]])));
      }
    }
  }
  EXPECT_LT(unsure, 400);
}

TEST(SampleOp, LargeVocabulariesEqualTheReference) {
  constexpr int32_t kVocab = 40000;
  std::mt19937 rng(5);
  for (int round = 0; round < 40; ++round) {
    RandomCase c = random_case(rng, kVocab);
    if (round % 4 == 0) std::sort(c.logits.begin(), c.logits.end());  // the worst for a selection
    if (round % 4 == 1) c.row.top_k = kVocab / 2;
    if (round % 4 == 2) c.row.top_k = 0, c.row.top_p = 0.999F;
    c.row.temperature = std::max(c.row.temperature, 0.5F);
    link(c);
    const int32_t token = token_of(c.logits, c.row);
    const reference::Kept kept =
        reference::kept_tokens(c.row, reference::adjusted(c.row, c.logits));
    const double u = sample_uniform(c.row.seed, c.row.stream, c.row.position);
    const reference::Slot slot = reference::slot_of(kept, token);
    EXPECT_LE(slot.low, u + 1e-4) << "round " << round;
    EXPECT_GE(slot.high, u - 1e-4) << "round " << round;
  }
}

TEST(SampleOp, ARowDoesNotDependOnItsNeighboursOrThreads) {
  constexpr int32_t kVocab = 3000;
  constexpr size_t kRows = 40;
  std::mt19937 rng(6);
  std::vector<RandomCase> cases;
  for (size_t i = 0; i < kRows; ++i) cases.push_back(random_case(rng, kVocab));
  for (RandomCase& c : cases) link(c);

  const auto in_order = [&](const std::vector<size_t>& order, int threads) {
    std::vector<float> logits;
    std::vector<SampleRow> rows;
    for (const size_t i : order) {
      logits.insert(logits.end(), cases[i].logits.begin(), cases[i].logits.end());
      rows.push_back(cases[i].row);
    }
    return run(logits, kVocab, rows, threads);
  };
  std::vector<size_t> order(kRows);
  std::iota(order.begin(), order.end(), size_t{0});
  for (const int threads : {1, 2, 4}) {
    std::shuffle(order.begin(), order.end(), rng);
    const Result together = in_order(order, threads);
    for (size_t place = 0; place < kRows; ++place) {
      const Result alone = in_order({order[place]}, 1);
      EXPECT_EQ(together.tokens[place], alone.tokens[0]);
      EXPECT_EQ(together.logprobs[place], alone.logprobs[0]);
      for (size_t i = 0; i < static_cast<size_t>(kMaxTopLogprobs); ++i) {
        const TopLogprob& a = together.top[place * kMaxTopLogprobs + i];
        EXPECT_EQ(a.token, alone.top[i].token);
        EXPECT_EQ(a.logprob, alone.top[i].logprob);
      }
    }
  }
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
