// The waiting line, priorities, deadlines, the end of the engine, and what it does when idle.
#include <sys/resource.h>

#include <mutex>

#include "engine_testing.h"

namespace treadle {
namespace {

using testing::endless_config;
using testing::eventually;
using testing::expect_error;
using testing::expect_quiet;
using testing::greedy;
using testing::in_session;
using testing::kForever;
using testing::read;
using testing::read_all;
using testing::Result;
using testing::run;
using testing::some_ids;
using testing::tiny_config;
using testing::tiny_engine;

std::unique_ptr<Engine> one_at_a_time(int32_t max_queue_size = 100) {
  EngineConfig config = endless_config();
  config.max_batch_size = 1;
  config.max_queue_size = max_queue_size;
  return tiny_engine(config);
}

Stream occupy(Engine& engine) {
  Stream stream = engine.submit(greedy(some_ids(10, 1), kForever));
  EXPECT_TRUE(stream.next());
  return stream;
}

TEST(EngineLimits, AFullLineRefusesWithTheNumbers) {
  const auto engine = one_at_a_time(2);
  Stream running = occupy(*engine);
  Stream a = engine->submit(greedy(some_ids(10, 2), 3));
  Stream b = engine->submit(in_session(1, greedy(some_ids(10, 3), 3)));
  const auto submit = [&] { engine->submit(greedy(some_ids(10, 4), 3)); };
  expect_error(ErrorCode::kQueueFull, {"2 requests", "max_queue_size is 2"}, submit);
  // A place is free again once somebody leaves.
  a.cancel();
  EXPECT_EQ(read(a).reason, FinishReason::kCancelled);
  Stream c = engine->submit(in_session(1, greedy(some_ids(10, 5), 3)));
  expect_error(ErrorCode::kQueueFull, {"max_queue_size is 2"}, submit);
  EXPECT_TRUE(eventually([&] { return engine->stats().waiting == 2; }));
  running.cancel();
  EXPECT_EQ(read(b).tokens.size(), 3U);
  EXPECT_EQ(read(c).tokens.size(), 3U);
  EXPECT_EQ(run(*engine, greedy(some_ids(10, 4), 3)).tokens.size(), 3U);
  read(running);
  expect_quiet(*engine);
}

// Refused requests take no place: neither in the line nor among the sessions.
TEST(EngineLimits, RefusalsLeaveNothing) {
  const auto engine = one_at_a_time(1);
  for (int i = 0; i < 5; ++i) {
    expect_error(ErrorCode::kTooLong, {"session_len"},
                 [&] { engine->submit(in_session(3, greedy(some_ids(kForever, 4), 3))); });
    Request request = in_session(4, greedy(some_ids(10, 4), 3));
    request.step = 5;
    expect_error(ErrorCode::kInvalidArgument, {"step = 5"}, [&] { engine->submit(request); });
  }
  EXPECT_FALSE(engine->session(3) || engine->session(4));
  EXPECT_EQ(run(*engine, greedy(some_ids(10, 4), 3)).tokens.size(), 3U);
  expect_quiet(*engine);
}

TEST(EngineLimits, HigherPrioritiesGoFirst) {
  const auto engine = one_at_a_time();
  Stream running = occupy(*engine);
  std::mutex mutex;
  std::vector<int> order;  // of first tokens
  std::vector<Stream> streams;
  const int priorities[] = {0, 2, 1, 2, -1, 0};
  for (int i = 0; i < 6; ++i) {
    Request request = greedy(some_ids(10, 2), 1);
    request.priority = priorities[i];
    streams.push_back(engine->submit(request));
    streams.back().on_ready([&, i] {
      const std::lock_guard lock(mutex);
      order.push_back(i);
    });
  }
  running.cancel();
  for (Stream& stream : streams) read(stream);
  EXPECT_EQ(order, (std::vector<int>{1, 3, 2, 0, 5, 4}));
}

TEST(EngineLimits, DeadlinesEndWhatRunsAndWhatWaits) {
  const auto engine = one_at_a_time();
  Request late = greedy(some_ids(10, 1), kForever);
  late.timeout_s = 0.02;
  Stream running = engine->submit(in_session(1, late));
  Stream waiting = engine->submit(late);
  Stream behind = engine->submit(in_session(1, late));
  for (Stream* stream : {&running, &waiting, &behind}) {
    const Result r = read(*stream);
    EXPECT_EQ(r.reason, FinishReason::kError);
    EXPECT_EQ(r.error, ErrorCode::kDeadlineExceeded);
    EXPECT_NE(r.message.find("timeout_s = 0.02"), std::string::npos) << r.message;
  }
  const auto session = engine->session(1);
  ASSERT_TRUE(session);
  EXPECT_FALSE(session->busy);
  engine->end_session(1);
  EXPECT_EQ(run(*engine, in_session(1, greedy(some_ids(10, 1), 3))).tokens.size(), 3U);
  late.timeout_s = 1e8;
  late.sampling.max_new_tokens = 3;
  EXPECT_EQ(run(*engine, late).tokens.size(), 3U);
  expect_quiet(*engine);
}

TEST(EngineLimits, ADeadlineInTheLineComesInTime) {
  const auto engine = one_at_a_time();
  Stream running = occupy(*engine);
  Request late = greedy(some_ids(10, 1), 5);
  late.timeout_s = 1e-6;
  Stream waiting = engine->submit(late);
  EXPECT_EQ(read(waiting).error, ErrorCode::kDeadlineExceeded);
  EXPECT_FALSE(running.done());
}

TEST(EngineLimits, ThePoolLimitsSessionLen) {
  EngineConfig config = tiny_config();
  config.cache_max_entry_count = 3;
  const auto engine = tiny_engine(config);
  EXPECT_EQ(engine->info().kv_blocks, 3);
  EXPECT_EQ(engine->info().session_len, 192);
  const auto too_long = [&] { engine->submit(greedy(some_ids(192, 1), 1)); };
  expect_error(ErrorCode::kTooLong, {"192"}, too_long);
  EXPECT_EQ(run(*engine, greedy(some_ids(191, 1), 9)).tokens.size(), 1U);
  EXPECT_EQ(run(*engine, greedy(some_ids(10, 1), 900)).tokens.size(), 182U);
  expect_quiet(*engine);
}

TEST(EngineLimits, ShutdownAtOnceEndsEverythingWithItsCause) {
  const auto engine = one_at_a_time();
  Stream running = occupy(*engine);
  Stream waiting = engine->submit(greedy(some_ids(10, 2), 3));
  Request several = in_session(1, greedy(some_ids(10, 2), 3));
  Stream behind = engine->submit(several);
  engine->shutdown();
  for (Stream* stream : {&running, &waiting, &behind}) {
    const Result r = read(*stream);
    EXPECT_EQ(r.reason, FinishReason::kError);
    EXPECT_EQ(r.error, ErrorCode::kShutdown);
    EXPECT_FALSE(r.message.empty());
  }
  expect_error(ErrorCode::kShutdown, {"shut down"},
               [&] { engine->submit(greedy(some_ids(10, 2), 3)); });
  EXPECT_TRUE(engine->health().ok);
  expect_quiet(*engine);
  engine->shutdown(5.0);
  engine->shutdown();
}

TEST(EngineLimits, ShutdownLetsLiveRequestsFinishWhileItDrains) {
  const auto engine = one_at_a_time();
  std::vector<Stream> streams;
  for (uint32_t i = 0; i < 5; ++i) {
    streams.push_back(engine->submit(in_session(i / 2, greedy(some_ids(10, i), 20))));
  }
  engine->shutdown(1000.0);  // returns as soon as all are done
  for (Stream& stream : streams) EXPECT_EQ(read(stream).tokens.size(), 20U);
  expect_quiet(*engine);
}

TEST(EngineLimits, DrainingHasAnEnd) {
  const auto engine = one_at_a_time();
  Stream endless = occupy(*engine);
  engine->shutdown(0.05);
  EXPECT_EQ(read(endless).error, ErrorCode::kShutdown);
}

TEST(EngineLimits, StreamsOutliveTheEngine) {
  auto engine = one_at_a_time();
  Stream finished = engine->submit(greedy(some_ids(10, 1), 3));
  ASSERT_TRUE(eventually([&] { return engine->stats().requests_finished == 1; }));
  Stream running = engine->submit(greedy(some_ids(10, 1), kForever));
  Request several = greedy(some_ids(300, 2), 3);
  several.sampling.n = 1;
  Stream waiting = engine->submit(several);
  engine.reset();
  EXPECT_EQ(read(finished).tokens.size(), 3U);
  EXPECT_EQ(read(running).error, ErrorCode::kShutdown);
  EXPECT_EQ(read(waiting).error, ErrorCode::kShutdown);
  waiting.cancel();
  running.on_ready([] {});
}

TEST(EngineLimits, UnforkedContinuationsEndLikeTheirRequest) {
  EngineConfig config = endless_config();
  config.max_prefill_token_num = 1;
  const auto engine = tiny_engine(config);
  Request request = greedy(some_ids(100000, 2), 3);
  request.sampling.n = 4;
  Stream stream = engine->submit(request);
  ASSERT_TRUE(eventually([&] { return engine->stats().steps > 0; }));
  stream.cancel();
  for (const Result& r : read_all(stream, 4)) {
    EXPECT_EQ(r.reason, FinishReason::kCancelled);
    EXPECT_EQ(r.usage.prompt_tokens, 100000);
    EXPECT_EQ(r.usage.output_tokens, 0);
  }
  expect_quiet(*engine);
  EXPECT_EQ(engine->stats().requests_cancelled, 1U);
}

// Processor time, not elapsed time: other load does not matter.
TEST(EngineLimits, AnIdleEngineUsesNoProcessorTime) {
  EngineConfig config = tiny_config();
  config.num_threads = 2;
  const auto engine = tiny_engine(config);
  run(*engine, in_session(1, greedy(some_ids(100, 1), 20)));
  const auto used = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    const auto seconds = [](const timeval& t) {
      return double(t.tv_sec) + double(t.tv_usec) / 1e6;
    };
    return seconds(usage.ru_utime) + seconds(usage.ru_stime);
  };
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const double before = used();
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  EXPECT_LT(used() - before, 0.1);
}

}  // namespace
}  // namespace treadle
