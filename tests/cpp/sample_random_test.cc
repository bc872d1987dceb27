// The sampling op against the reference: distributions, random requests, independence of rows.
#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "ops/philox.h"
#include "sample_harness.h"
#include "sample_reference.h"

namespace treadle::ops::cpu {
namespace {

TEST(SampleRandom, DrawsFollowTheDistribution) {
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

TEST(SampleRandom, EqualsTheReferenceOnRandomRows) {
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

TEST(SampleRandom, LargeVocabulariesEqualTheReference) {
  constexpr int32_t kVocab = 40000;
  std::mt19937 rng(5);
  for (int round = 0; round < 16; ++round) {
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

TEST(SampleRandom, ARowDoesNotDependOnItsNeighboursOrThreads) {
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

}  // namespace
}  // namespace treadle::ops::cpu
