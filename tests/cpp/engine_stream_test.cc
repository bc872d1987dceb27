// One request at a time: what its stream gives, and how it ends.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "engine_testing.h"

namespace treadle {
namespace {

using testing::demo_model;
using testing::endless_config;
using testing::eventually;
using testing::expect_error;
using testing::expect_quiet;
using testing::greedy;
using testing::Ids;
using testing::join;
using testing::kForever;
using testing::read;
using testing::Result;
using testing::run;
using testing::some_ids;
using testing::tiny_config;
using testing::tiny_engine;

bool begins_with(const Ids& whole, const Ids& part) {
  return part.size() <= whole.size() && std::equal(part.begin(), part.end(), whole.begin());
}

TEST(EngineStream, GivesEveryTokenAndTheUsage) {
  const auto engine = tiny_engine();
  const Result r = run(*engine, greedy(some_ids(150, 1), 20));
  EXPECT_EQ(r.tokens.size(), 20U);
  EXPECT_EQ(r.reason, FinishReason::kLength);
  EXPECT_EQ(r.error, ErrorCode::kOk);
  EXPECT_EQ(r.usage.prompt_tokens, 150);
  EXPECT_EQ(r.usage.computed_tokens, 150);
  EXPECT_EQ(r.usage.cached_tokens, 0);
  EXPECT_EQ(r.usage.output_tokens, 20);
  expect_quiet(*engine);
  const Stats s = engine->stats();
  EXPECT_EQ(s.requests_finished, 1U);
  EXPECT_EQ(s.prompt_tokens, 150U);
  EXPECT_EQ(s.computed_tokens, 150U);
  EXPECT_EQ(s.output_tokens, 20U);
  EXPECT_EQ(s.ttft_count, 1U);
  EXPECT_EQ(s.itl_count, 19U);
  EXPECT_EQ(s.steps, 21U);  // 150 prompt tokens are two chunks of at most 96
  EXPECT_GT(s.ttft_seconds, 0.0);
  EXPECT_GE(s.step_seconds, s.host_seconds);
}

TEST(EngineStream, TheDemoModelAnswers) {
  const auto engine = testing::load(demo_model(), {.max_batch_size = 2, .num_threads = 1});
  Request request = greedy(some_ids(20, 3), 12);
  const Result once = run(*engine, request);
  EXPECT_EQ(once.tokens.size(), 12U);
  EXPECT_EQ(run(*engine, request).tokens, once.tokens);
}

TEST(EngineStream, SlowReadersGetOutputsMerged) {
  const auto engine = tiny_engine();
  Request request = greedy(some_ids(30, 2), 40);
  request.sampling.logprobs = 2;
  const Result expected = run(*engine, request);
  Stream stream = engine->submit(request);
  // A later request that has ended tells that the loop is past the end of this one.
  while (engine->stats().requests_finished < 2) std::this_thread::yield();
  run(*engine, greedy(some_ids(5, 1), 1));
  const Result merged = read(stream);
  EXPECT_EQ(merged.outputs, 1);
  EXPECT_EQ(merged.tokens, expected.tokens);
  EXPECT_EQ(merged.logprobs, expected.logprobs);
}

TEST(EngineStream, WaitingIsBounded) {
  const auto engine = tiny_engine();
  Stream stream = engine->submit(greedy(some_ids(900, 2), 100));
  for (const double seconds : {0.0, -1.0, std::nan(""), -std::numeric_limits<double>::infinity()}) {
    stream.next_for(seconds);  // returns at once
  }
  stream.cancel();
  // As long as it takes, and no overflow.
  while (stream.next_for(std::numeric_limits<double>::infinity())) {
  }
  EXPECT_TRUE(stream.done());
  EXPECT_FALSE(stream.next());
  EXPECT_FALSE(stream.try_next());
  EXPECT_FALSE(stream.next_for(1e300));
}

TEST(EngineStream, OnReadyAnnouncesOutputs) {
  const auto engine = tiny_engine();
  Stream stream = engine->submit(greedy(some_ids(10, 2), 30));
  std::atomic<int> calls{0};
  stream.on_ready([&] { ++calls; });
  Result r;
  while (!stream.done()) {
    const int before = calls;
    while (auto out = stream.try_next()) r.add(*out);
    const bool more = stream.done() || eventually([&] { return calls > before; });
    ASSERT_TRUE(more);
  }
  EXPECT_EQ(r.tokens.size(), 30U);
  // What is there already is announced at once; a removed callback is not called any more.
  Stream late = engine->submit(greedy(some_ids(10, 2), 5));
  run(*engine, greedy(some_ids(5, 1), 1));
  std::atomic<int> at_once{0};
  late.on_ready([&] { ++at_once; });
  EXPECT_GE(at_once, 1);
  late.on_ready({});  // what it counts in goes before the stream does
  Stream removed = engine->submit(greedy(some_ids(10, 2), 200));
  std::atomic<int> count{0};
  removed.on_ready([&] { ++count; });
  removed.on_ready({});
  const int after = count;
  read(removed);
  EXPECT_EQ(count, after);
}

TEST(EngineStream, ACallbackThatThrowsHarmsNobody) {
  const auto engine = tiny_engine();
  Stream stream = engine->submit(greedy(some_ids(500, 2), 30));
  try {
    stream.on_ready([] { throw std::runtime_error("it should not"); });
  } catch (const std::runtime_error&) {  // it was called at once, on this thread
  }
  EXPECT_EQ(run(*engine, greedy(some_ids(10, 3), 30)).tokens.size(), 30U);
  EXPECT_EQ(read(stream).tokens.size(), 30U);
  EXPECT_TRUE(engine->health().ok);
}

TEST(EngineStream, LettingGoCancels) {
  const auto engine = tiny_engine(endless_config());
  { const Stream gone = engine->submit(greedy(some_ids(10, 2), kForever)); }
  ASSERT_TRUE(eventually([&] { return engine->stats().requests_cancelled == 1; }));
  {
    Stream moved = engine->submit(greedy(some_ids(10, 2), kForever));
    ASSERT_TRUE(moved.next());
    moved = engine->submit(greedy(some_ids(10, 3), 5));  // the one before is let go of
    EXPECT_EQ(read(moved).tokens.size(), 5U);
  }
  ASSERT_TRUE(eventually([&] { return engine->stats().requests_cancelled == 2; }));
  expect_quiet(*engine);
}

TEST(EngineStream, CancelledAtAnyMomentGivesABeginning) {
  const auto engine = tiny_engine();
  const Request request = greedy(some_ids(300, 4), 200);
  const Ids whole = run(*engine, request).tokens;
  std::mt19937 random(3);
  for (int i = 0; i < 30; ++i) {
    Stream stream = engine->submit(request);
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 4000));
    stream.cancel();
    const Result r = read(stream);
    EXPECT_TRUE(begins_with(whole, r.tokens));
    EXPECT_TRUE(r.reason == FinishReason::kCancelled || r.tokens == whole);
    // Nothing is said of one that was gone before the engine looked at it.
    EXPECT_TRUE(r.usage.prompt_tokens == 300 || r.tokens.empty());
  }
  expect_quiet(*engine);
}

TEST(EngineStream, StopWordsEndTheOutputAndAreNeverShown) {
  const auto engine = tiny_engine();
  Request request = greedy(some_ids(40, 6), 60);
  const Ids whole = run(*engine, request).tokens;
  for (const size_t length : {1U, 2U, 3U, 5U}) {
    for (size_t at = 0; at + length <= 20; at += 4) {
      const Ids word(whole.begin() + static_cast<ptrdiff_t>(at),
                     whole.begin() + static_cast<ptrdiff_t>(at + length));
      const auto first = std::search(whole.begin(), whole.end(), word.begin(), word.end());
      // A decoy that begins the same must only be held back.
      Ids decoy = word;
      decoy.push_back(whole[at] == 300 ? 301 : 300);
      request.sampling.stop_words = {word, decoy};
      Stream stream = engine->submit(request);
      Result r;
      while (auto out = stream.next()) {
        r.add(*out);
        EXPECT_TRUE(begins_with(Ids(whole.begin(), first), r.tokens));
      }
      EXPECT_EQ(r.tokens, Ids(whole.begin(), first));
      EXPECT_EQ(r.reason, FinishReason::kStop);
    }
  }
}

TEST(EngineStream, HeldBackTokensComeOutAtTheEnd) {
  const auto engine = tiny_engine();
  Request request = greedy(some_ids(40, 6), 12);
  request.sampling.logprobs = 0;
  const Result whole = run(*engine, request);
  // The last three tokens begin a stop word that never comes.
  request.sampling.stop_words = {{whole.tokens[9], whole.tokens[10], whole.tokens[11], 300, 301}};
  const Result r = run(*engine, request);
  EXPECT_EQ(r.tokens, whole.tokens);
  EXPECT_EQ(r.logprobs, whole.logprobs);
  EXPECT_EQ(r.reason, FinishReason::kLength);
}

TEST(EngineStream, EndTokensEndUnlessIgnored) {
  const auto engine = tiny_engine();
  Request request = greedy(some_ids(20, 7), 6);
  request.sampling.ignore_eos = false;
  request.sampling.logit_bias = {{2, 1e6F}};  // the end token, always
  Result r = run(*engine, request);
  EXPECT_TRUE(r.tokens.empty());
  EXPECT_EQ(r.reason, FinishReason::kStop);
  request.sampling.min_new_tokens = 3;  // barred for so long
  r = run(*engine, request);
  EXPECT_EQ(r.tokens.size(), 3U);
  EXPECT_EQ(std::ranges::count(r.tokens, 2), 0);
  EXPECT_EQ(r.reason, FinishReason::kStop);
  request.sampling.min_new_tokens = 0;
  request.sampling.ignore_eos = true;
  r = run(*engine, request);
  EXPECT_EQ(r.tokens, Ids(6, 2));
  EXPECT_EQ(r.reason, FinishReason::kLength);
}

TEST(EngineStream, EndsAtSessionLen) {
  EngineConfig config = tiny_config();
  config.session_len = 100;
  const auto engine = tiny_engine(config);
  const Result r = run(*engine, greedy(some_ids(90, 8), 500));
  EXPECT_EQ(r.reason, FinishReason::kLength);
  EXPECT_EQ(r.tokens.size(), 10U);
  EXPECT_EQ(run(*engine, greedy(some_ids(99, 8), 500)).tokens.size(), 1U);
  expect_error(ErrorCode::kTooLong, {"100"}, [&] { engine->submit(greedy(some_ids(100, 8), 1)); });
}

// What was generated is, fed as a prompt, as likely as it was said to be: bit for bit, although the
// positions are computed in chunks instead of one by one.
void expect_teacher_forced(Engine& engine, const Ids& prompt, int32_t count) {
  Request request = greedy(prompt, count);
  request.sampling.logprobs = 3;
  const Result generated = run(engine, request);
  ASSERT_EQ(generated.logprobs.size(), static_cast<size_t>(count));
  for (size_t i = 0; i < generated.logprobs.size(); ++i) {
    const PositionLogprobs& at = generated.logprobs[i];
    EXPECT_EQ(at.chosen.token_id, generated.tokens[i]);
    ASSERT_EQ(at.top.size(), 3U);
    EXPECT_EQ(at.top[0], at.chosen);
    EXPECT_GE(at.top[0].logprob, at.top[1].logprob);
    EXPECT_GE(at.top[1].logprob, at.top[2].logprob);
    EXPECT_LE(at.chosen.logprob, 0.0F);
  }
  Request forced = greedy(join(prompt, generated.tokens), 1);
  forced.sampling.prompt_logprobs = 3;
  const Result r = run(engine, forced);
  ASSERT_EQ(r.prompt_logprobs.size(), forced.input_ids.size() - 1);
  for (size_t i = 0; i < generated.logprobs.size(); ++i) {
    EXPECT_EQ(r.prompt_logprobs[prompt.size() - 1 + i], generated.logprobs[i]) << i;
  }
  for (size_t i = 0; i < r.prompt_logprobs.size(); ++i) {
    EXPECT_EQ(r.prompt_logprobs[i].chosen.token_id, forced.input_ids[i + 1]);
  }
  EXPECT_EQ(r.usage.cached_tokens, 0);
}

TEST(EngineStream, LogprobsEqualTeacherForcedOnes) {
  expect_teacher_forced(*tiny_engine(), some_ids(130, 9), 80);
}

TEST(EngineStream, LogprobsOfTheDemoModelEqualTeacherForcedOnes) {
  const auto engine = testing::load(
      demo_model(), {.max_batch_size = 2, .max_prefill_token_num = 24, .num_threads = 2});
  expect_teacher_forced(*engine, some_ids(70, 10), 16);
}

// So many rows of such a vocabulary that they do not all fit the workspace at once.
TEST(EngineStream, LogitsMayTakeSeveralPasses) {
  EngineConfig config = tiny_config();
  config.max_prefill_token_num = 400;
  const auto several = testing::load(testing::wide_model(), config);
  config.max_prefill_token_num = 16;
  const auto one = testing::load(testing::wide_model(), config);
  Request request = greedy(some_ids(300, 2), 5);
  request.sampling.prompt_logprobs = 2;
  request.sampling.logprobs = 2;
  request.sampling.n = 3;
  Stream a = several->submit(request);
  Stream b = one->submit(request);
  const std::vector<Result> in_passes = testing::read_all(a, 3);
  const std::vector<Result> at_once = testing::read_all(b, 3);
  EXPECT_EQ(in_passes[0].prompt_logprobs.size(), 299U);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(in_passes[i].tokens, at_once[i].tokens);
    EXPECT_EQ(in_passes[i].logprobs, at_once[i].logprobs);
    EXPECT_EQ(in_passes[i].prompt_logprobs, at_once[i].prompt_logprobs);
  }
}

TEST(EngineStream, LogprobsAreOnlyGivenWhenAskedFor) {
  const auto engine = tiny_engine();
  Request request = greedy(some_ids(20, 9), 4);
  EXPECT_TRUE(run(*engine, request).logprobs.empty());
  request.sampling.logprobs = 0;
  const Result r = run(*engine, request);
  ASSERT_EQ(r.logprobs.size(), 4U);
  EXPECT_TRUE(r.logprobs[0].top.empty());
  EXPECT_TRUE(r.prompt_logprobs.empty());
}

TEST(EngineStream, RefusesBadRequestsByName) {
  const auto engine = tiny_engine();
  const Request good = greedy(some_ids(10, 1), 4);
  const auto refused = [&](ErrorCode code, const std::vector<std::string>& parts, auto change) {
    Request request = good;
    change(request);
    expect_error(code, parts, [&] { engine->submit(request); });
  };
  const auto invalid = ErrorCode::kInvalidArgument;
  refused(invalid, {"input_ids", "empty"}, [](Request& r) { r.input_ids.clear(); });
  refused(invalid, {"input_ids[2]", "320", "319"}, [](Request& r) { r.input_ids[2] = 320; });
  refused(invalid, {"input_ids[0]", "-1"}, [](Request& r) { r.input_ids[0] = -1; });
  refused(invalid, {"timeout_s"}, [](Request& r) { r.timeout_s = std::nan(""); });
  refused(invalid, {"timeout_s", "-1"}, [](Request& r) { r.timeout_s = -1.0; });
  refused(invalid, {"step", "session_id"}, [](Request& r) { r.step = 0; });
  refused(invalid, {"kContinue"}, [](Request& r) { r.session_mode = SessionMode::kContinue; });
  refused(invalid, {"step = 4", "kStart"}, [](Request& r) {
    r.session_id = 1;
    r.session_mode = SessionMode::kStart;
    r.step = 4;
  });
  refused(invalid, {"temperature"}, [](Request& r) { r.sampling.temperature = std::nanf(""); });
  refused(invalid, {"n", "9", "8"}, [](Request& r) { r.sampling.n = 9; });
  refused(ErrorCode::kUnknownSession, {"77"}, [](Request& r) {
    r.session_id = 77;
    r.session_mode = SessionMode::kContinue;
  });
  refused(ErrorCode::kTooLong, {"1024", "2000"}, [](Request& r) { r.input_ids.assign(2000, 5); });
  EXPECT_EQ(run(*engine, good).tokens.size(), 4U);
  expect_quiet(*engine);
}

}  // namespace
}  // namespace treadle
