// Sessions: whatever happened to a session, its next turn gives what the same history gives when it
// is sent as a whole to an engine that has never seen it.
#include <algorithm>
#include <array>

#include "session_testing.h"

namespace treadle {
namespace {

using testing::demo_model;
using testing::endless_config;
using testing::eventually;
using testing::expect_error;
using testing::expect_quiet;
using testing::expect_same;
using testing::fresh_engine;
using testing::greedy;
using testing::history;
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
using testing::with_logprobs;

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
