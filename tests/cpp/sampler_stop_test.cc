#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "sampler/stop_rules.h"

namespace treadle::sampler {
namespace {

using Tokens = std::vector<int32_t>;

struct Result {
  std::vector<Tokens> shown;  // after each token
  FinishReason finish = FinishReason::kNone;
  int32_t fed = 0;
};

// Feeds tokens the way the engine's loop does until the rules say stop.
Result run(const SamplingParams& params, const Tokens& eos, const Tokens& tokens) {
  StopRules rules(std::make_shared<const StopTable>(params, eos));
  Result result;
  Tokens pending;
  Tokens shown;
  for (const int32_t token : tokens) {
    pending.push_back(token);
    ++result.fed;
    const StopDecision d = rules.feed(token);
    EXPECT_GE(d.emit_count, 0);
    EXPECT_LE(d.emit_count, static_cast<int32_t>(pending.size()));
    shown.insert(shown.end(), pending.begin(), pending.begin() + d.emit_count);
    pending.erase(pending.begin(), pending.begin() + d.emit_count);
    result.shown.push_back(shown);
    result.finish = d.finish;
    if (d.finish != FinishReason::kNone) {
      EXPECT_EQ(rules.pending(), 0);
      break;
    }
    EXPECT_EQ(rules.pending(), static_cast<int32_t>(pending.size()));
    EXPECT_EQ(rules.generated(), result.fed);
  }
  return result;
}

// Whether the first n tokens of the word end the text.
bool ends_with(const Tokens& text, const Tokens& word, size_t n) {
  return n <= text.size() && std::equal(word.begin(), word.begin() + static_cast<ptrdiff_t>(n),
                                        text.end() - static_cast<ptrdiff_t>(n));
}

// The contract, written without any cleverness: looks at the whole output after every token.
Result naive(const SamplingParams& params, const Tokens& eos, const Tokens& tokens) {
  Result result;
  Tokens output;
  for (const int32_t token : tokens) {
    const bool may_stop = static_cast<int32_t>(output.size()) >= params.min_new_tokens;
    output.push_back(token);
    ++result.fed;
    const auto has = [&](const Tokens& ids) {
      return std::find(ids.begin(), ids.end(), token) != ids.end();
    };
    size_t hidden = 0;
    if (may_stop && (has(params.stop_token_ids) || (!params.ignore_eos && has(eos)))) {
      result.finish = FinishReason::kStop;
      hidden = 1;
    } else {
      for (const Tokens& word : params.stop_words) {
        if (may_stop && ends_with(output, word, word.size())) {
          result.finish = FinishReason::kStop;
          hidden = std::max(hidden, word.size());
        }
      }
      if (result.finish == FinishReason::kNone) {
        if (static_cast<int32_t>(output.size()) >= params.max_new_tokens) {
          result.finish = FinishReason::kLength;
        } else {
          for (const Tokens& word : params.stop_words) {
            for (size_t n = 1; n < word.size(); ++n) {
              if (ends_with(output, word, n)) hidden = std::max(hidden, n);
            }
          }
        }
      }
    }
    result.shown.emplace_back(output.begin(), output.end() - static_cast<int>(hidden));
    if (result.finish != FinishReason::kNone) break;
  }
  return result;
}

TEST(StopRules, EndsAtTheModelsEndTokens) {
  SamplingParams params;
  const Result r = run(params, {2, 7}, {5, 6, 7, 8});
  EXPECT_EQ(r.finish, FinishReason::kStop);
  EXPECT_EQ(r.fed, 3);
  EXPECT_EQ(r.shown.back(), (Tokens{5, 6}));
}

TEST(StopRules, IgnoreEosKeepsStopTokenIds) {
  SamplingParams params;
  params.ignore_eos = true;
  params.stop_token_ids = {9};
  const Result r = run(params, {2}, {5, 2, 6, 9, 1});
  EXPECT_EQ(r.finish, FinishReason::kStop);
  EXPECT_EQ(r.shown.back(), (Tokens{5, 2, 6}));
}

TEST(StopRules, HoldsBackWhatMayBeginAStopWord) {
  SamplingParams params;
  params.stop_words = {{1, 1, 2}};
  const Result r = run(params, {}, {1, 1, 1, 3, 1, 1, 2});
  ASSERT_EQ(r.shown.size(), 7U);
  EXPECT_EQ(r.shown[0], Tokens{});
  EXPECT_EQ(r.shown[1], Tokens{});
  EXPECT_EQ(r.shown[2], Tokens{1});  // the newest two may still begin it
  EXPECT_EQ(r.shown[3], (Tokens{1, 1, 1, 3}));
  EXPECT_EQ(r.shown[6], (Tokens{1, 1, 1, 3}));
  EXPECT_EQ(r.finish, FinishReason::kStop);
}

TEST(StopRules, TheLongestOfSeveralCompleteWordsIsCut) {
  SamplingParams params;
  params.stop_words = {{2}, {1, 2}, {0, 1, 2}};
  EXPECT_EQ(run(params, {}, {5, 1, 2}).shown.back(), Tokens{5});
  EXPECT_EQ(run(params, {}, {5, 0, 1, 2}).shown.back(), Tokens{5});
}

TEST(StopRules, AnEndTokenShowsWhatWasHeldBack) {
  SamplingParams params;
  params.stop_words = {{1, 2, 3}};
  const Result r = run(params, {9}, {5, 1, 2, 9});
  EXPECT_EQ(r.finish, FinishReason::kStop);
  EXPECT_EQ(r.shown.back(), (Tokens{5, 1, 2}));
}

TEST(StopRules, LengthShowsWhatWasHeldBack) {
  SamplingParams params;
  params.stop_words = {{1, 2, 3}};
  params.max_new_tokens = 3;
  const Result r = run(params, {}, {5, 1, 2, 3});
  EXPECT_EQ(r.finish, FinishReason::kLength);
  EXPECT_EQ(r.fed, 3);
  EXPECT_EQ(r.shown.back(), (Tokens{5, 1, 2}));
}

TEST(StopRules, AStopOnTheLastAllowedTokenIsAStop) {
  SamplingParams params;
  params.max_new_tokens = 2;
  EXPECT_EQ(run(params, {9}, {5, 9}).finish, FinishReason::kStop);
}

TEST(StopRules, MinNewTokensPutsOffEveryEnd) {
  SamplingParams params;
  params.min_new_tokens = 3;
  params.stop_words = {{1, 2}};
  const Result r = run(params, {9}, {9, 1, 2, 1, 2});
  EXPECT_EQ(r.fed, 5);
  EXPECT_EQ(r.finish, FinishReason::kStop);
  EXPECT_EQ(r.shown.back(), (Tokens{9, 1, 2}));
}

TEST(StopRules, FlushGivesUpTheHeldTokens) {
  SamplingParams params;
  params.stop_words = {{1, 2, 3}};
  StopRules rules(std::make_shared<const StopTable>(params, Tokens{}));
  EXPECT_EQ(rules.feed(1).emit_count, 0);
  EXPECT_EQ(rules.feed(2).emit_count, 0);
  StopRules fork = rules;
  EXPECT_EQ(rules.flush(), 2);
  EXPECT_EQ(rules.flush(), 0);
  EXPECT_EQ(rules.feed(3).emit_count, 1);
  EXPECT_EQ(fork.feed(3).finish, FinishReason::kStop);
}

TEST(StopRules, EqualsTheNaiveRulesOnRandomWords) {
  std::mt19937 rng(20240607);
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(rng);
  };
  int stops = 0;
  int held = 0;
  for (int round = 0; round < 20000; ++round) {
    const int alphabet = pick(2, 3);
    const auto word = [&](int length) {
      Tokens w(static_cast<size_t>(length));
      for (int32_t& t : w) t = pick(0, alphabet - 1);
      return w;
    };
    SamplingParams params;
    const int words = pick(0, 4);
    for (int i = 0; i < words; ++i) params.stop_words.push_back(word(pick(2, 6)));
    params.min_new_tokens = pick(0, 1) == 0 ? 0 : pick(0, 12);
    params.max_new_tokens = params.min_new_tokens + pick(1, 30);
    params.ignore_eos = pick(0, 3) == 0;
    Tokens eos;
    if (pick(0, 5) == 0) eos.push_back(pick(0, alphabet));
    if (pick(0, 5) == 0) params.stop_token_ids.push_back(pick(0, alphabet));
    const Tokens tokens = word(40);

    const Result got = run(params, eos, tokens);
    const Result expected = naive(params, eos, tokens);
    ASSERT_EQ(got.finish, expected.finish) << "round " << round;
    ASSERT_EQ(got.fed, expected.fed) << "round " << round;
    ASSERT_EQ(got.shown, expected.shown) << "round " << round;
    stops += got.finish == FinishReason::kStop;
    for (size_t i = 0; i < got.shown.size(); ++i) held += got.shown[i].size() < i + 1;
  }
  EXPECT_GT(stops, 5000);  // the sweep does reach what it is for
  EXPECT_GT(held, 20000);
}

}  // namespace
}  // namespace treadle::sampler
