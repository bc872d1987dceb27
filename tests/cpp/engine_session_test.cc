// Sessions: whatever happened to a session, its next turn gives what the same history gives when it
// is sent as a whole to an engine that has never seen it.
#include <algorithm>
#include <array>
#include <map>

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
using testing::in_session;
using testing::int8_config;
using testing::join;
using testing::kForever;
using testing::read;
using testing::read_all;
using testing::Result;
using testing::run;
using testing::some_ids;
using testing::tiny_config;
using testing::tiny_engine;

Request with_logprobs(Request request) {
  request.sampling.logprobs = 2;
  return request;
}

// An engine that keeps and shares nothing: the reference.
std::unique_ptr<Engine> fresh_engine(const std::string& path = testing::tiny_model(),
                                     EngineConfig config = tiny_config()) {
  config.max_batch_size = 1;
  config.enable_prefix_caching = false;
  return testing::load(path, config);
}

void expect_same(const Result& a, const Result& b) {
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.logprobs, b.logprobs);
  EXPECT_EQ(a.reason, b.reason);
}

Ids history(const Engine& engine, uint64_t id) {
  const auto session = engine.session(id);
  return session ? session->token_ids : Ids{};
}

// Turns of odd lengths, with something in between.
void expect_turns_equal_resending(Engine& engine, Engine& reference, int turns, int32_t output,
                                  const std::function<void()>& between = {}) {
  Ids all;
  for (int turn = 0; turn < turns; ++turn) {
    const Ids prompt = some_ids(20 + 31 * turn, static_cast<uint32_t>(turn + 50));
    const Result r = run(engine, in_session(1, with_logprobs(greedy(prompt, output))));
    all = join(all, prompt);
    expect_same(r, run(reference, with_logprobs(greedy(all, output))));
    all = join(all, r.tokens);
    EXPECT_EQ(history(engine, 1), all);
    EXPECT_EQ(r.usage.prompt_tokens, static_cast<int32_t>(all.size()) - output);
    EXPECT_EQ(r.usage.cached_tokens + r.usage.computed_tokens, r.usage.prompt_tokens);
    if (between) {
      between();
    } else if (turn > 0) {  // only what is new, and the one token that was not fed yet
      EXPECT_EQ(r.usage.computed_tokens, static_cast<int32_t>(prompt.size()) + 1);
    }
  }
}

TEST(EngineSession, TurnsEqualResendingTheWholeHistory) {
  expect_turns_equal_resending(*tiny_engine(), *fresh_engine(), 6, 37);
}

TEST(EngineSession, TurnsWithInt8KvEqualResendingTheWholeHistory) {
  expect_turns_equal_resending(*tiny_engine(int8_config()),
                               *fresh_engine(testing::tiny_model(), int8_config()), 6, 37);
}

TEST(EngineSession, TurnsOfTheDemoModelEqualResendingTheWholeHistory) {
  const auto engine = testing::load(demo_model(), tiny_config());
  expect_turns_equal_resending(*engine, *fresh_engine(demo_model()), 3, 20);
}

TEST(EngineSession, TurnsWithoutPrefixSharingReuseTheirOwnBlocks) {
  EngineConfig config = tiny_config();
  config.enable_prefix_caching = false;
  expect_turns_equal_resending(*tiny_engine(config), *fresh_engine(), 4, 37);
}

void expect_eviction_changes_nothing(EngineConfig config) {
  const auto reference = fresh_engine(testing::tiny_model(), config);
  config.cache_max_entry_count = 9;
  const auto engine = tiny_engine(config);
  uint32_t seed = 0;
  expect_turns_equal_resending(*engine, *reference, 4, 37, [&] {
    // Takes all of the pool but what is active: nothing of the session stays.
    run(*engine, greedy(some_ids(570, 900 + seed++), 5));
  });
  EXPECT_GT(engine->stats().evicted_blocks, 15U);
  expect_quiet(*engine);
}

TEST(EngineSession, EvictionChangesNothing) { expect_eviction_changes_nothing(tiny_config()); }

TEST(EngineSession, EvictionChangesNothingWithInt8Kv) {
  expect_eviction_changes_nothing(int8_config());
}

// With dynamic NTK the rotation of every key depends on the prompt's length once it is beyond what
// the model was trained for (1,024 here): blocks may be reused below that only.
TEST(EngineSession, TurnsWithDynamicNtkEqualResending) {
  EngineConfig config = tiny_config();
  config.session_len = 4000;
  config.rope_scaling_factor = 2.0;
  config.max_prefill_token_num = 200;
  const auto engine = tiny_engine(config);
  config.enable_prefix_caching = false;
  config.max_batch_size = 1;
  const auto reference = tiny_engine(config);
  Ids all;
  const std::array<int32_t, 6> turns = {400, 300, 290, 60, 250, 700};  // 1,024 is passed mid-turn
  for (size_t turn = 0; turn < turns.size(); ++turn) {
    const Ids prompt = some_ids(turns[turn], static_cast<uint32_t>(turn));
    const Result r = run(*engine, in_session(1, with_logprobs(greedy(prompt, 30))));
    all = join(all, prompt);
    expect_same(r, run(*reference, with_logprobs(greedy(all, 30))));
    EXPECT_TRUE(all.size() <= 1024 || r.usage.cached_tokens == 0);
    EXPECT_TRUE(turn != 1 || r.usage.cached_tokens > 400);
    all = join(all, r.tokens);
  }
  // A short request still finds what is shared below the limit, and only that.
  const Ids begin(all.begin(), all.begin() + 1000);
  const Result r = run(*engine, with_logprobs(greedy(begin, 40)));
  EXPECT_GT(r.usage.cached_tokens, 0);
  expect_same(r, run(*reference, with_logprobs(greedy(begin, 40))));
}

TEST(EngineSession, HistoryIsThereWhenTheLastOutputIs) {
  const auto engine = tiny_engine();
  for (int i = 0; i < 50; ++i) {
    Stream stream = engine->submit(in_session(1, greedy(some_ids(3, 1), 2)));
    while (auto out = stream.next()) {
      if (out->finish_reason == FinishReason::kNone) continue;
      const auto session = engine->session(1);
      ASSERT_TRUE(session);
      EXPECT_FALSE(session->busy);
      EXPECT_EQ(session->token_ids.size(), static_cast<size_t>(5 * (i + 1)));
      EXPECT_EQ(engine->stats().requests_finished, static_cast<uint64_t>(i + 1));
    }
  }
}

TEST(EngineSession, TheEndTokenIsPartOfTheHistory) {
  const auto engine = tiny_engine();
  Request request = in_session(1, greedy(some_ids(10, 1), 8));
  request.sampling.ignore_eos = false;
  request.sampling.logit_bias = {{2, 1e6F}};
  EXPECT_TRUE(run(*engine, request).tokens.empty());
  EXPECT_EQ(history(*engine, 1), join(some_ids(10, 1), {2}));
}

TEST(EngineSession, ACancelledTurnLeavesWhatWasFedAndGenerated) {
  const auto engine = tiny_engine();
  const auto reference = fresh_engine();
  std::mt19937 random(9);
  Ids before;
  for (int i = 0; i < 40; ++i) {
    if (before.size() > 500) {
      engine->end_session(1);
      before.clear();
    }
    const Ids prompt = some_ids(1 + static_cast<int32_t>(random() % 250), random());
    Stream stream = engine->submit(in_session(1, greedy(prompt, 100)));
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 3000));
    stream.cancel();
    const Result r = read(stream);
    const Ids now = history(*engine, 1);
    const Ids whole = join(join(before, prompt), r.tokens);
    ASSERT_LE(now.size(), whole.size());
    ASSERT_GE(now.size(), before.size());
    EXPECT_TRUE(std::equal(now.begin(), now.end(), whole.begin()));
    EXPECT_TRUE(r.tokens.empty() || now == whole);
    before = now;
    if (i % 4 != 0 || now.size() > 900) continue;
    const Ids next = some_ids(10, random());
    const Result turn = run(*engine, in_session(1, with_logprobs(greedy(next, 6))));
    expect_same(turn, run(*reference, with_logprobs(greedy(join(now, next), 6))));
    before = history(*engine, 1);
  }
  expect_quiet(*engine);
}

TEST(EngineSession, StepRollsBackToAnyPoint) {
  const auto engine = tiny_engine();
  const auto reference = fresh_engine();
  run(*engine, in_session(1, greedy(some_ids(170, 1), 40)));
  const std::array<int32_t, 10> steps = {210, 209, 200, 193, 192, 191, 128, 65, 1, 0};
  for (const int32_t step : steps) {
    const Ids before = history(*engine, 1);
    const Ids kept(before.begin(), before.begin() + step);
    Request request = in_session(1, with_logprobs(greedy(some_ids(7, 99), 5)));
    request.step = step;
    const Result r = run(*engine, request);
    const Ids whole = join(kept, request.input_ids);
    expect_same(r, run(*reference, with_logprobs(greedy(whole, 5))));
    EXPECT_EQ(history(*engine, 1), join(whole, r.tokens));
    // Nothing within a full block, nor in the block that was remembered, is computed again.
    EXPECT_TRUE(step <= 192 || r.usage.computed_tokens <= 8) << step;
    // The next round needs a history that is long enough.
    request = in_session(1, greedy(some_ids(170, 1), 40));
    request.session_mode = SessionMode::kStart;
    run(*engine, request);
  }
}

TEST(EngineSession, StepBeyondTheHistoryIsRefusedWithBothNumbers) {
  const auto engine = tiny_engine(endless_config());
  run(*engine, in_session(1, greedy(some_ids(10, 1), 5)));
  Request request = in_session(1, greedy(some_ids(3, 1), 5));
  request.step = 16;
  expect_error(ErrorCode::kInvalidArgument, {"step = 16", "15"}, [&] { engine->submit(request); });
  request.step = -1;
  expect_error(ErrorCode::kInvalidArgument, {"step = -1"}, [&] { engine->submit(request); });
  EXPECT_EQ(history(*engine, 1).size(), 15U);
  // While the session is busy its length is not known yet: the error comes on the stream.
  Stream busy = engine->submit(in_session(1, greedy(some_ids(3, 1), kForever)));
  request.step = kForever;
  Stream refused = engine->submit(request);
  EXPECT_TRUE(engine->session(1)->busy);
  busy.cancel();
  read(busy);
  const Result r = read(refused);
  EXPECT_EQ(r.reason, FinishReason::kError);
  EXPECT_EQ(r.error, ErrorCode::kInvalidArgument);
  const std::string length = std::to_string(history(*engine, 1).size());
  EXPECT_NE(r.message.find("history, " + length), std::string::npos) << r.message;
  expect_quiet(*engine);
}

TEST(EngineSession, StartDropsAndContinueInsists) {
  const auto engine = tiny_engine();
  run(*engine, in_session(1, greedy(some_ids(100, 1), 5)));
  Request request = in_session(1, greedy(some_ids(10, 2), 5));
  request.session_mode = SessionMode::kContinue;
  EXPECT_EQ(run(*engine, request).usage.prompt_tokens, 115);
  request.session_mode = SessionMode::kStart;
  EXPECT_EQ(run(*engine, request).usage.prompt_tokens, 10);
  EXPECT_TRUE(engine->end_session(1));
  EXPECT_FALSE(engine->end_session(1));
  EXPECT_FALSE(engine->session(1));
  request.session_mode = SessionMode::kContinue;
  expect_error(ErrorCode::kUnknownSession, {"session 1"}, [&] { engine->submit(request); });
}

TEST(EngineSession, EndSessionFlagDropsItHoweverTheRequestEnds) {
  const auto engine = tiny_engine(endless_config());
  Request last = in_session(1, greedy(some_ids(100, 1), 5));
  last.end_session = true;
  run(*engine, last);
  EXPECT_FALSE(engine->session(1));
  last.sampling.max_new_tokens = kForever;
  Stream stream = engine->submit(last);
  ASSERT_TRUE(stream.next());
  EXPECT_TRUE(engine->cancel(1));
  EXPECT_EQ(read(stream).reason, FinishReason::kCancelled);
  EXPECT_FALSE(engine->session(1));
  EXPECT_FALSE(engine->cancel(1));
  // Those in line behind it begin afresh, or fail when they insist on going on.
  last.sampling.max_new_tokens = 60;
  Request next = in_session(1, greedy(some_ids(10, 2), 5));
  Request insists = next;
  insists.session_mode = SessionMode::kContinue;
  Stream busy = engine->submit(in_session(1, greedy(some_ids(10, 1), kForever)));
  Stream a = engine->submit(last);
  Stream b = engine->submit(insists);
  Stream c = engine->submit(next);
  Stream d = engine->submit(insists);
  busy.cancel();
  read(busy);
  EXPECT_EQ(read(a).tokens.size(), 60U);
  const Result refused = read(b);
  EXPECT_EQ(refused.error, ErrorCode::kUnknownSession);
  EXPECT_EQ(read(c).usage.prompt_tokens, 10);
  EXPECT_EQ(read(d).usage.prompt_tokens, 25);
  EXPECT_EQ(history(*engine, 1).size(), 30U);
  expect_quiet(*engine);
}

TEST(EngineSession, EndSessionCancelsWhatRunsAndWaits) {
  const auto engine = tiny_engine(endless_config());
  Stream a = engine->submit(in_session(1, greedy(some_ids(10, 1), kForever)));
  Stream b = engine->submit(in_session(1, greedy(some_ids(10, 1), kForever)));
  ASSERT_TRUE(a.next());
  EXPECT_TRUE(engine->session(1)->busy);
  EXPECT_TRUE(engine->end_session(1));
  EXPECT_FALSE(engine->session(1));
  // A new session of the same name is another one, at once.
  EXPECT_EQ(run(*engine, in_session(1, greedy(some_ids(10, 1), 3))).usage.prompt_tokens, 10);
  EXPECT_EQ(read(a).reason, FinishReason::kCancelled);
  EXPECT_EQ(read(b).reason, FinishReason::kCancelled);
  EXPECT_EQ(history(*engine, 1).size(), 13U);
  EXPECT_TRUE(eventually([&] { return engine->stats().blocks_active == 0; }));
  expect_quiet(*engine);
}

TEST(EngineSession, CancelKeepsTheSessionUsable) {
  const auto engine = tiny_engine(endless_config());
  EXPECT_FALSE(engine->cancel(1));
  Stream a = engine->submit(in_session(1, greedy(some_ids(10, 1), kForever)));
  Stream b = engine->submit(in_session(1, greedy(some_ids(10, 1), kForever)));
  ASSERT_TRUE(a.next());
  EXPECT_TRUE(engine->cancel(1));
  EXPECT_EQ(read(a).reason, FinishReason::kCancelled);
  const Result never_ran = read(b);
  EXPECT_EQ(never_ran.reason, FinishReason::kCancelled);
  EXPECT_TRUE(never_ran.tokens.empty());
  const size_t length = history(*engine, 1).size();
  EXPECT_GE(length, 11U);
  EXPECT_EQ(run(*engine, in_session(1, greedy(some_ids(2, 1), 3))).usage.prompt_tokens,
            static_cast<int32_t>(length) + 2);
}

TEST(EngineSession, RequestsSubmittedAtOnceRunInOrder) {
  const auto one_by_one = tiny_engine();
  const auto at_once = tiny_engine();
  std::vector<Result> expected;
  for (int i = 0; i < 6; ++i) {
    expected.push_back(run(
        *one_by_one,
        in_session(1, with_logprobs(greedy(some_ids(5 + 11 * i, static_cast<uint32_t>(i)), 9)))));
  }
  std::vector<Stream> streams;
  for (int i = 0; i < 6; ++i) {
    Request request = with_logprobs(greedy(some_ids(5 + 11 * i, static_cast<uint32_t>(i)), 9));
    request.priority = i;  // matters between sessions, not within one
    streams.push_back(at_once->submit(in_session(1, request)));
  }
  for (int i = 0; i < 6; ++i) {
    const Result r = read(streams[static_cast<size_t>(i)]);
    expect_same(r, expected[static_cast<size_t>(i)]);
  }
  EXPECT_EQ(history(*at_once, 1), history(*one_by_one, 1));
}

TEST(EngineSession, IdleSessionsExpire) {
  EngineConfig config = tiny_config();
  config.session_ttl_s = 0.05;
  const auto engine = tiny_engine(config);
  run(*engine, in_session(1, greedy(some_ids(100, 1), 3)));
  run(*engine, in_session(2, greedy(some_ids(100, 2), 3)));
  EXPECT_TRUE(eventually([&] { return !engine->session(1) && !engine->session(2); }));
  EXPECT_TRUE(eventually([&] { return engine->stats().sessions == 0; }));
  // Their remembered blocks are free; what is indexed stays for whoever begins the same.
  EXPECT_TRUE(eventually([&] { return engine->stats().blocks_cached == 2; }));
  Request request = in_session(1, greedy(some_ids(5, 1), 3));
  request.session_mode = SessionMode::kContinue;
  expect_error(ErrorCode::kUnknownSession, {"expired"}, [&] { engine->submit(request); });
}

TEST(EngineSession, ABusySessionDoesNotExpire) {
  EngineConfig config = tiny_config();
  config.session_ttl_s = 0.001;
  const auto engine = tiny_engine(config);
  Stream stream = engine->submit(in_session(1, greedy(some_ids(10, 1), 700)));
  const Result r = read(stream);
  EXPECT_EQ(r.reason, FinishReason::kLength);
  EXPECT_EQ(r.tokens.size(), 700U);
}

TEST(EngineSession, TheLongestIdleMakesRoomForANewOne) {
  EngineConfig config = endless_config();
  config.max_sessions = 3;
  const auto engine = tiny_engine(config);
  for (const uint64_t id : {1U, 2U, 3U}) run(*engine, in_session(id, greedy(some_ids(5, 1), 2)));
  run(*engine, in_session(1, greedy(some_ids(5, 1), 2)));  // 2 is the longest idle now
  run(*engine, in_session(4, greedy(some_ids(5, 1), 2)));
  EXPECT_TRUE(engine->session(1) && engine->session(3) && engine->session(4));
  EXPECT_FALSE(engine->session(2));
  std::vector<Stream> busy;
  for (const uint64_t id : {1U, 3U, 4U}) {
    busy.push_back(engine->submit(in_session(id, greedy(some_ids(5, 1), kForever))));
  }
  expect_error(ErrorCode::kQueueFull, {"max_sessions = 3"},
               [&] { engine->submit(in_session(5, greedy(some_ids(5, 1), 2))); });
  EXPECT_EQ(run(*engine, greedy(some_ids(5, 1), 2)).tokens.size(), 2U);  // needs no session
  for (Stream& stream : busy) stream.cancel();
  for (Stream& stream : busy) read(stream);
  run(*engine, in_session(5, greedy(some_ids(5, 1), 2)));
  expect_quiet(*engine);
}

TEST(EngineSession, WithoutPrefixSharingNothingIsSharedNorLeftOver) {
  EngineConfig config = tiny_config();
  config.enable_prefix_caching = false;
  const auto engine = tiny_engine(config);
  const Ids prompt = some_ids(200, 1);
  run(*engine, greedy(prompt, 5));
  EXPECT_EQ(engine->stats().blocks_cached, 0);
  Request several = greedy(prompt, 80);
  several.sampling.n = 3;
  several.sampling.temperature = 1.0F;
  Stream stream = engine->submit(several);
  read_all(stream, 3);
  EXPECT_EQ(engine->stats().blocks_cached, 0);
  run(*engine, in_session(1, greedy(prompt, 5)));
  EXPECT_EQ(run(*engine, greedy(prompt, 5)).usage.cached_tokens, 0);
  EXPECT_EQ(run(*engine, in_session(2, greedy(prompt, 5))).usage.cached_tokens, 0);
  engine->end_session(1);
  engine->end_session(2);
  EXPECT_TRUE(eventually([&] { return engine->stats().blocks_free == 64; }));
}

TEST(EngineSession, GoesOnWithTheFirstOfSeveralContinuations) {
  const auto engine = tiny_engine();
  const auto reference = fresh_engine();
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    Request request = in_session(seed, greedy(some_ids(20, 5), 100));
    request.sampling.temperature = 1.0F;
    request.sampling.n = 4;
    request.sampling.seed = seed;
    // The first one mostly stops early; the others then fill the block that it has left.
    request.sampling.stop_token_ids = some_ids(12, static_cast<uint32_t>(seed));
    Stream stream = engine->submit(request);
    const std::vector<Result> results = read_all(stream, 4);
    const Ids now = history(*engine, seed);
    ASSERT_GE(now.size(), 20 + results[0].tokens.size());
    EXPECT_TRUE(std::equal(results[0].tokens.begin(), results[0].tokens.end(), now.begin() + 20));
    const Result turn = run(*engine, in_session(seed, with_logprobs(greedy(some_ids(9, 3), 60))));
    expect_same(turn, run(*reference, with_logprobs(greedy(join(now, some_ids(9, 3)), 60))));
    for (const Result& other : results) {  // and nobody finds something else in its blocks
      const Ids whole = join(join(some_ids(20, 5), other.tokens), {7});
      expect_same(run(*engine, with_logprobs(greedy(whole, 5))),
                  run(*reference, with_logprobs(greedy(whole, 5))));
    }
  }
  expect_quiet(*engine);
}

// Anything at all, on a pool that is always too small, against the history told by the engine.
TEST(EngineSession, RandomUseEqualsResending) {
  const auto reference = fresh_engine();
  for (const bool share : {true, false}) {
    EngineConfig config = tiny_config();
    config.cache_max_entry_count = 8;
    config.enable_prefix_caching = share;
    const auto engine = tiny_engine(config);
    const auto limit = static_cast<size_t>(engine->info().session_len);
    std::mt19937 random(share ? 21 : 22);
    for (int round = 0; round < 70; ++round) {
      const uint64_t id = 1 + random() % 4;
      Request request = in_session(
          id, with_logprobs(greedy(some_ids(1 + static_cast<int32_t>(random() % 120), random() % 3),
                                   1 + static_cast<int32_t>(random() % 70))));
      Ids before = history(*engine, id);
      if (before.size() + request.input_ids.size() + 75 > limit) {
        engine->end_session(id);
        continue;
      }
      if (random() % 4 == 0) {
        request.step = static_cast<int32_t>(random() % (before.size() + 1));
        before.resize(static_cast<size_t>(*request.step));
      } else if (random() % 8 == 0) {
        request.session_mode = SessionMode::kStart;
        before.clear();
      }
      Stream stream = engine->submit(request);
      Stream noise = engine->submit(greedy(some_ids(100, random()), 30));  // takes blocks away
      const bool cancels = random() % 4 == 0;
      if (cancels) {
        std::this_thread::sleep_for(std::chrono::microseconds(random() % 1500));
        engine->cancel(id);
      }
      const Result r = read(stream);
      if (cancels) continue;
      const Ids whole = join(before, request.input_ids);
      expect_same(r,
                  run(*reference, with_logprobs(greedy(whole, request.sampling.max_new_tokens))));
      ASSERT_EQ(history(*engine, id), join(whole, r.tokens)) << "round " << round;
    }
    EXPECT_GT(engine->stats().evicted_blocks, 0U);
  }
}

}  // namespace
}  // namespace treadle
