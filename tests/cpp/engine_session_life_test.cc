// A session's life: what it holds after a turn, who waits for whom, cancelling, ending, expiring.
#include <algorithm>

#include "session_testing.h"

namespace treadle {
namespace {

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
using testing::join;
using testing::kForever;
using testing::read;
using testing::Result;
using testing::run;
using testing::some_ids;
using testing::tiny_config;
using testing::tiny_engine;
using testing::with_logprobs;

TEST(EngineSessionLife, HistoryIsThereWhenTheLastOutputIs) {
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

TEST(EngineSessionLife, TheEndTokenIsPartOfTheHistory) {
  const auto engine = tiny_engine();
  Request request = in_session(1, greedy(some_ids(10, 1), 8));
  request.sampling.ignore_eos = false;
  request.sampling.logit_bias = {{2, 1e6F}};
  EXPECT_TRUE(run(*engine, request).tokens.empty());
  EXPECT_EQ(history(*engine, 1), join(some_ids(10, 1), {2}));
}

TEST(EngineSessionLife, ACancelledTurnLeavesWhatWasFedAndGenerated) {
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

TEST(EngineSessionLife, StartDropsAndContinueInsists) {
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

TEST(EngineSessionLife, EndSessionFlagDropsItHoweverTheRequestEnds) {
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

TEST(EngineSessionLife, EndSessionCancelsWhatRunsAndWaits) {
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

TEST(EngineSessionLife, CancelKeepsTheSessionUsable) {
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

TEST(EngineSessionLife, RequestsSubmittedAtOnceRunInOrder) {
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

TEST(EngineSessionLife, IdleSessionsExpire) {
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

TEST(EngineSessionLife, ABusySessionDoesNotExpire) {
  EngineConfig config = tiny_config();
  config.session_ttl_s = 0.001;
  const auto engine = tiny_engine(config);
  Stream stream = engine->submit(in_session(1, greedy(some_ids(10, 1), 700)));
  const Result r = read(stream);
  EXPECT_EQ(r.reason, FinishReason::kLength);
  EXPECT_EQ(r.tokens.size(), 700U);
}

TEST(EngineSessionLife, TheLongestIdleMakesRoomForANewOne) {
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

}  // namespace
}  // namespace treadle
