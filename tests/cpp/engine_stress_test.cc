// Many threads do everything at once. What each request gives is checked by the other tests; here
// nothing may race, hang, leak or be miscounted. Meant for the sanitizers.
#include <atomic>

#include "engine_testing.h"

namespace treadle {
namespace {

using testing::eventually;
using testing::expect_quiet;
using testing::greedy;
using testing::some_ids;
using testing::tiny_config;
using testing::tiny_engine;

struct Tally {
  std::atomic<uint64_t> submitted{0};
  std::atomic<uint64_t> refused{0};
  std::atomic<uint64_t> read_to_the_end{0};
};

Request any_request(std::mt19937& random) {
  Request request = greedy(some_ids(1 + static_cast<int32_t>(random() % 200), random() % 5),
                           1 + static_cast<int32_t>(random() % 30));
  request.sampling.temperature = 1.0F;
  if (random() % 2 == 0) request.session_id = random() % 6;
  if (random() % 6 == 0) request.sampling.n = 1 + static_cast<int32_t>(random() % 4);
  if (random() % 6 == 0) request.sampling.logprobs = 1;
  if (random() % 10 == 0) request.sampling.prompt_logprobs = 0;
  if (random() % 10 == 0) request.timeout_s = 1e-4 * double(random() % 100);
  if (random() % 10 == 0) request.sampling.stop_words = {{5, 6}, {7}};
  if (request.session_id && random() % 8 == 0) request.end_session = true;
  if (request.session_id && random() % 8 == 0) request.step = 0;
  if (request.session_id && random() % 8 == 0) request.session_mode = SessionMode::kContinue;
  if (!request.step && random() % 8 == 0 && request.session_mode == SessionMode::kAuto) {
    request.session_mode = SessionMode::kStart;
  }
  request.priority = static_cast<int32_t>(random() % 3);
  return request;
}

// Reads, waits, cancels, or lets go of a stream.
void use(Stream stream, std::mt19937& random, Tally& tally) {
  switch (random() % 8) {
    case 0:
      return;  // lets go
    case 1:
      stream.next();
      stream.cancel();
      break;
    case 2:
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 2000));
      stream.cancel();
      break;
    case 3: {
      auto ready = std::make_shared<std::atomic<int>>(0);
      stream.on_ready([ready] { ++*ready; });
      while (!stream.done() && random() % 20 != 0) {
        stream.try_next();
        std::this_thread::yield();
      }
      stream.on_ready({});
      break;
    }
    default:
      break;
  }
  while (!stream.done()) stream.next_for(0.01 * double(random() % 3));
  ++tally.read_to_the_end;
}

void work(Engine& engine, uint32_t seed, int rounds, Tally& tally) {
  std::mt19937 random(seed);
  std::vector<Stream> kept;
  for (int i = 0; i < rounds; ++i) {
    try {
      kept.push_back(engine.submit(any_request(random)));
      ++tally.submitted;
    } catch (const Error& error) {
      EXPECT_NE(error.code(), ErrorCode::kInternal) << error.what();
      ++tally.refused;
    }
    if (random() % 10 == 0) engine.cancel(random() % 6);
    if (random() % 10 == 0) engine.end_session(random() % 6);
    if (random() % 10 == 0) engine.session(random() % 6);
    if (random() % 10 == 0) {
      const Stats s = engine.stats();
      EXPECT_EQ(s.blocks_free + s.blocks_active + s.blocks_cached, engine.info().kv_blocks);
    }
    while (kept.size() > random() % 4) {
      const auto at = static_cast<ptrdiff_t>(random() % kept.size());
      Stream stream = std::move(kept[static_cast<size_t>(at)]);
      kept.erase(kept.begin() + at);
      use(std::move(stream), random, tally);
    }
  }
}

EngineConfig crowded() {
  EngineConfig config = tiny_config();
  config.cache_max_entry_count = 20;
  config.max_queue_size = 12;
  config.max_sessions = 4;
  config.session_ttl_s = 0.02;
  config.num_threads = 2;
  return config;
}

void run_threads(Engine& engine, int rounds, Tally& tally) {
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < 6; ++t) {
    threads.emplace_back([&, t] { work(engine, t, rounds, tally); });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(EngineStress, EverythingAtOnceEndsInOrder) {
  for (const bool share : {true, false}) {
    EngineConfig config = crowded();
    config.enable_prefix_caching = share;
    const auto engine = tiny_engine(config);
    Tally tally;
    run_threads(*engine, 60, tally);
    ASSERT_TRUE(eventually([&] {
      const Stats s = engine->stats();
      return s.running == 0 && s.waiting == 0 &&
             s.requests_finished + s.requests_cancelled + s.requests_failed == tally.submitted;
    }));
    expect_quiet(*engine);
    EXPECT_EQ(engine->stats().requests_submitted, tally.submitted);
    EXPECT_GT(tally.read_to_the_end, 0U);
    EXPECT_TRUE(engine->health().ok);
    // Nobody holds a place in the line any more.
    for (int i = 0; i < 20; ++i) testing::run(*engine, greedy(some_ids(5, 1), 1));
    ASSERT_TRUE(eventually([&] { return engine->stats().sessions == 0; }));
    // Without sharing, nothing outlives its session: only what a session has rolled back may stay.
    expect_quiet(*engine);
  }
}

TEST(EngineStress, ShuttingDownInTheMiddleOfEverything) {
  for (int round = 0; round < 4; ++round) {
    const auto engine = tiny_engine(crowded());
    Tally tally;
    std::thread ends([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      engine->shutdown(round % 2 == 0 ? 0.0 : 0.02);
    });
    run_threads(*engine, 20, tally);
    ends.join();
    engine->shutdown();
    expect_quiet(*engine);
    EXPECT_EQ(engine->stats().requests_submitted, tally.submitted);
    EXPECT_THROW(engine->submit(greedy(some_ids(5, 1), 1)), Error);
  }
}

}  // namespace
}  // namespace treadle
