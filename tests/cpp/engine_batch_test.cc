// Many requests at once: each gets what it would get alone, whatever else runs, waits, gives way or
// is cancelled beside it.
#include <algorithm>
#include <set>

#include "engine_testing.h"

namespace treadle {
namespace {

using testing::demo_model;
using testing::expect_quiet;
using testing::greedy;
using testing::Ids;
using testing::int8_config;
using testing::join;
using testing::read_all;
using testing::Result;
using testing::run;
using testing::some_ids;
using testing::tiny_config;
using testing::tiny_engine;

// Every kind of sampling, prompts with common beginnings, lengths around block and chunk ends.
std::vector<Request> mixed_requests(int count, int32_t longest, int32_t max_new, bool several) {
  std::mt19937 random(77);
  std::vector<Request> requests;
  for (int i = 0; i < count; ++i) {
    const auto length = 1 + static_cast<int32_t>(random() % static_cast<uint32_t>(longest));
    Request r = greedy(some_ids(length, random() % 3),
                       1 + static_cast<int32_t>(random() % static_cast<uint32_t>(max_new)));
    r.sampling.ignore_eos = random() % 2 == 0;
    r.sampling.logprobs = static_cast<int32_t>(random() % 4) - 1;
    r.sampling.seed = random();
    if (random() % 5 == 0) r.sampling.prompt_logprobs = 1;
    if (random() % 3 != 0) r.sampling.temperature = 0.8F;
    if (random() % 3 == 0) r.sampling.top_p = 0.9F;
    if (random() % 3 == 0) r.sampling.top_k = 20;
    if (random() % 3 == 0) r.sampling.repetition_penalty = 1.3F;
    if (random() % 3 == 0) r.sampling.frequency_penalty = 0.4F;
    if (random() % 4 == 0) r.sampling.bad_words = {{5}, {6, 7}};
    if (random() % 4 == 0) r.sampling.min_new_tokens = 1;
    if (several && random() % 4 == 0) r.sampling.n = 1 + static_cast<int32_t>(random() % 3);
    requests.push_back(std::move(r));
  }
  return requests;
}

using Results = std::vector<std::vector<Result>>;

Results alone(const std::string& model, const std::vector<Request>& requests,
              EngineConfig config = tiny_config()) {
  config.max_batch_size = 3;
  config.enable_prefix_caching = false;
  config.max_prefill_token_num = 512;
  const auto engine = testing::load(model, config);
  Results results;
  for (const Request& request : requests) {
    Stream stream = engine->submit(request);
    results.push_back(read_all(stream, request.sampling.n));
  }
  return results;
}

Results together(Engine& engine, const std::vector<Request>& requests) {
  std::vector<Stream> streams;
  for (const Request& request : requests) {
    streams.push_back(engine.submit(request));
    if (streams.size() % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(300));
  }
  Results results;
  for (size_t i = 0; i < streams.size(); ++i) {
    results.push_back(read_all(streams[i], requests[i].sampling.n));
  }
  expect_quiet(engine);
  return results;
}

void expect_same(const Results& a, const Results& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    for (size_t k = 0; k < a[i].size(); ++k) {
      EXPECT_EQ(a[i][k].tokens, b[i][k].tokens) << "request " << i << ", continuation " << k;
      EXPECT_EQ(a[i][k].logprobs, b[i][k].logprobs) << "request " << i;
      EXPECT_EQ(a[i][k].prompt_logprobs, b[i][k].prompt_logprobs) << "request " << i;
      EXPECT_EQ(a[i][k].reason, b[i][k].reason) << "request " << i;
    }
  }
}

TEST(EngineBatch, AnyMixGivesWhatEachGivesAlone) {
  const std::vector<Request> requests = mixed_requests(40, 300, 60, true);
  const Results expected = alone(testing::tiny_model(), requests);
  for (const int32_t chunk : {1, 17, 96, 1000}) {
    EngineConfig config = tiny_config();
    config.max_prefill_token_num = chunk;
    config.num_threads = chunk == 96 ? 3 : 1;
    expect_same(together(*tiny_engine(config), requests), expected);
  }
}

TEST(EngineBatch, AnyMixGivesWhatEachGivesAloneWithInt8Kv) {
  const std::vector<Request> requests = mixed_requests(40, 300, 60, true);
  const Results expected = alone(testing::tiny_model(), requests, int8_config());
  for (const int32_t chunk : {17, 96}) {
    EngineConfig config = int8_config();
    config.max_prefill_token_num = chunk;
    config.num_threads = chunk == 96 ? 3 : 1;
    const auto engine = tiny_engine(config);
    EXPECT_EQ(engine->info().kv_dtype, "int8");
    expect_same(together(*engine, requests), expected);
  }
}

TEST(EngineBatch, AnyMixGivesWhatEachGivesAloneOnTheDemoModel) {
  const std::vector<Request> requests = mixed_requests(8, 60, 10, false);
  EngineConfig config = tiny_config();
  config.max_prefill_token_num = 40;
  config.num_threads = 2;
  const auto engine = testing::load(demo_model(), config);
  expect_same(together(*engine, requests), alone(demo_model(), requests));
}

// So few blocks that sequences keep giving way to each other.
void expect_preemption_changes_nothing(EngineConfig config, const std::vector<int32_t>& pools) {
  const std::vector<Request> requests = mixed_requests(40, 200, 120, true);
  const Results expected = alone(testing::tiny_model(), requests, config);
  for (const int32_t blocks : pools) {
    config.cache_max_entry_count = blocks;
    const auto engine = tiny_engine(config);
    expect_same(together(*engine, requests), expected);
    EXPECT_GT(engine->stats().preemptions, 0U) << blocks;
  }
}

TEST(EngineBatch, PreemptionChangesNothing) {
  expect_preemption_changes_nothing(tiny_config(), {6, 9, 14});
}

TEST(EngineBatch, PreemptionChangesNothingWithInt8Kv) {
  expect_preemption_changes_nothing(int8_config(), {9});
}

TEST(EngineBatch, CancellingSomeLeavesTheOthersAlone) {
  const std::vector<Request> requests = mixed_requests(40, 200, 60, true);
  const Results expected = alone(testing::tiny_model(), requests);
  EngineConfig config = tiny_config();
  config.cache_max_entry_count = 12;
  const auto engine = tiny_engine(config);
  std::mt19937 random(4);
  for (int round = 0; round < 3; ++round) {
    std::vector<Stream> streams;
    for (const Request& request : requests) streams.push_back(engine->submit(request));
    std::vector<bool> cancelled(streams.size());
    for (size_t i = 0; i < streams.size(); ++i) {
      cancelled[i] = random() % 2 == 0;
      if (!cancelled[i]) continue;
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 500));
      streams[i].cancel();
    }
    for (size_t i = 0; i < streams.size(); ++i) {
      const std::vector<Result> got = read_all(streams[i], requests[i].sampling.n);
      if (!cancelled[i]) expect_same({got}, {expected[i]});
    }
    expect_quiet(*engine);
  }
}

TEST(EngineBatch, ContinuationsShareThePromptsBlocks) {
  EngineConfig config = tiny_config();
  config.max_batch_size = 6;
  const auto engine = tiny_engine(config);
  Request request = greedy(some_ids(10 * 64 + 30, 1), 30);
  request.sampling.n = 6;
  request.sampling.temperature = 1.0F;
  request.sampling.seed = 5;
  Stream stream = engine->submit(request);
  int32_t most = 0;
  std::vector<Result> results(6);
  while (auto out = stream.next()) {
    results[static_cast<size_t>(out->index)].add(*out);
    most = std::max(most, engine->stats().blocks_active);
  }
  EXPECT_LE(most, 10 + 6);
  expect_quiet(*engine);
  const Stats s = engine->stats();
  EXPECT_EQ(s.computed_tokens, 670U);  // once
  EXPECT_EQ(s.copied_blocks, 5U);      // the last holder writes in place
  EXPECT_EQ(s.ttft_count, 6U);
  std::set<Ids> different;
  for (const Result& r : results) {
    EXPECT_EQ(r.tokens.size(), 30U);
    EXPECT_EQ(r.usage.prompt_tokens, 670);
    EXPECT_EQ(r.usage.output_tokens, 30);
    different.insert(r.tokens);
  }
  EXPECT_EQ(different.size(), 6U);
  // The first one is what n = 1 gives; greedy ones are all the same.
  request.sampling.n = 1;
  EXPECT_EQ(run(*engine, request).tokens, results[0].tokens);
  request.sampling.n = 3;
  request.sampling.temperature = 0.0F;
  Stream same = engine->submit(request);
  const std::vector<Result> r = read_all(same, 3);
  EXPECT_TRUE(r[0].tokens == r[1].tokens && r[1].tokens == r[2].tokens);
}

TEST(EngineBatch, SeedsMakeRequestsRepeatable) {
  const auto a = tiny_engine();
  const auto b = tiny_engine();
  Request request = greedy(some_ids(10, 1), 30);
  request.sampling.temperature = 1.0F;
  // Without a seed each request draws its own, in an order that the engine's seed fixes.
  const Ids first = run(*a, request).tokens;
  const Ids second = run(*a, request).tokens;
  EXPECT_NE(first, second);
  EXPECT_EQ(run(*b, request).tokens, first);
  EXPECT_EQ(run(*b, request).tokens, second);
  request.sampling.seed = 9;
  const Ids seeded = run(*a, request).tokens;
  EXPECT_EQ(run(*a, request).tokens, seeded);
  EXPECT_EQ(run(*b, request).tokens, seeded);
  request.sampling.seed = 10;
  EXPECT_NE(run(*a, request).tokens, seeded);
}

TEST(EngineBatch, CommonBeginningsAreComputedOnce) {
  const auto engine = tiny_engine();
  const Ids system = some_ids(5 * 64 + 10, 1);
  const Result first = run(*engine, greedy(join(system, some_ids(20, 2)), 5));
  const Result second = run(*engine, greedy(join(system, some_ids(30, 3)), 5));
  EXPECT_EQ(second.usage.cached_tokens, 5 * 64);
  EXPECT_EQ(second.usage.computed_tokens, 40);
  EXPECT_EQ(engine->stats().prefix_hit_tokens, 320U);
  EXPECT_EQ(run(*engine, greedy(join(system, some_ids(20, 2)), 5)).tokens, first.tokens);
}

}  // namespace
}  // namespace treadle
