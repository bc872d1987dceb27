// What happens when the device fails, memory runs out, or the model gives no number.
#include <cmath>

#include "engine_testing.h"
#include "faulty_ops.h"

namespace treadle {
namespace {

using testing::eventually;
using testing::expect_error;
using testing::expect_quiet;
using testing::faults;
using testing::Faults;
using testing::faulty_ops;
using testing::greedy;
using testing::in_session;
using testing::read;
using testing::read_all;
using testing::Result;
using testing::run;
using testing::some_ids;
using testing::tiny_config;
using testing::tiny_model;

class EngineFaults : public ::testing::Test {
 protected:
  EngineFaults() { faults.reset(); }
  ~EngineFaults() override { EXPECT_EQ(faults.alive, 0) << "a backend was never destroyed"; }

  static std::unique_ptr<Engine> engine(EngineConfig config = tiny_config()) {
    return EngineFactory::load(tiny_model(), config, faulty_ops());
  }
};

std::vector<Stream> submit_many(Engine& engine) {
  std::vector<Stream> streams;
  try {
    for (uint32_t i = 0; i < 14; ++i) {
      Request request = greedy(some_ids(1 + 23 * static_cast<int32_t>(i), i), 40);
      if (i % 3 == 0) request.session_id = i % 2;
      if (i % 5 == 0) request.sampling.n = 2;
      request.sampling.logprobs = static_cast<int32_t>(i % 3) - 1;
      streams.push_back(engine.submit(request));
    }
  } catch (const Error& error) {  // it has failed already
    EXPECT_EQ(error.code(), ErrorCode::kDevice) << error.what();
  }
  return streams;
}

TEST_F(EngineFaults, AFailingDeviceEndsEveryRequestWithItsCause) {
  std::mt19937 random(1);
  const Faults::Kind kinds[] = {Faults::Kind::kDevice, Faults::Kind::kBadAlloc,
                                Faults::Kind::kUnknown};
  const std::string causes[] = {"fell off the bus", "no memory", "unknown"};
  for (int round = 0; round < 40; ++round) {
    const auto failing = engine();
    const int kind = round % 3;
    faults.kind = kinds[kind];
    faults.fail_at = faults.calls + 1 + static_cast<int64_t>(random() % 1500);
    std::vector<Stream> streams = submit_many(*failing);
    if (random() % 3 == 0 && streams.size() > 5)
      streams.erase(streams.begin(), streams.begin() + 5);  // readers that went away
    int failed = 0;
    for (Stream& stream : streams) {
      while (auto out = stream.next()) {
        if (out->finish_reason != FinishReason::kError) continue;
        EXPECT_EQ(out->error, ErrorCode::kDevice);
        EXPECT_NE(out->error_message.find(causes[kind]), std::string::npos) << out->error_message;
        ++failed;
      }
      EXPECT_TRUE(stream.done());
    }
    if (failed == 0 && faults.calls < faults.fail_at) continue;  // all was done before
    ASSERT_TRUE(eventually([&] { return !failing->health().ok; }));
    EXPECT_NE(failing->health().cause.find(causes[kind]), std::string::npos);
    expect_error(ErrorCode::kDevice, {causes[kind], "loaded again"},
                 [&] { failing->submit(greedy(some_ids(5, 1), 2)); });
    expect_error(ErrorCode::kDevice, {causes[kind]},
                 [&] { failing->submit(in_session(1, greedy(some_ids(5, 1), 2))); });
    // Looking, ending sessions and shutting down still work.
    ASSERT_TRUE(eventually([&] { return failing->stats().blocks_active == 0; }));
    expect_quiet(*failing);
    failing->session(0);
    failing->end_session(0);
    failing->cancel(1);
    failing->shutdown(10.0);
  }
}

// What a GPU does after an error that its context does not survive: everything fails from then on,
// cleaning up included, whichever operation met it first.
TEST_F(EngineFaults, ADeviceThatIsLostForGoodEndsEveryRequestWithItsCause) {
#ifdef TREADLE_TEST_OVERLAP
  const char* finish = "wait";
#else
  const char* finish = "synchronize";
#endif
  for (const char* operation :
       {"upload", "embed", "linear", "qkv", "attention", "gather", "sample", "download", finish}) {
    SCOPED_TRACE(operation);
    faults.reset();
    const auto failing = engine();
    Stream early = failing->submit(greedy(some_ids(5, 1), 2));
    EXPECT_EQ(read(early).tokens.size(), 2U);
    faults.calls = 0;
    faults.sticky = true;
    faults.fail_in = operation;
    std::vector<Stream> streams = submit_many(*failing);
    for (Stream& stream : streams) {
      while (auto out = stream.next()) {
        if (out->finish_reason == FinishReason::kNone) continue;
        EXPECT_EQ(out->finish_reason, FinishReason::kError);
        EXPECT_EQ(out->error, ErrorCode::kDevice);
        EXPECT_NE(out->error_message.find("fell off the bus"), std::string::npos);
      }
    }
    ASSERT_TRUE(eventually([&] { return !failing->health().ok; }));
    EXPECT_NE(failing->health().cause.find("fell off the bus"), std::string::npos);
    expect_error(ErrorCode::kDevice, {"fell off the bus", "loaded again"},
                 [&] { failing->submit(greedy(some_ids(5, 1), 2)); });
    failing->shutdown(10.0);
  }
}

TEST_F(EngineFaults, MemoryThatDoesNotSufficeIsToldWithWhatTakesIt) {
  const auto fails = [](size_t most_bytes, const std::vector<std::string>& parts) {
    faults.reset();
    faults.most_bytes = most_bytes;
    expect_error(ErrorCode::kOutOfMemory, parts, [] { engine(); });
    EXPECT_EQ(faults.alive, 0);
  };
  const std::vector<std::string> ledger = {" MiB free; weights ", ", workspace ", ", KV pool "};
  const auto with = [&](std::vector<std::string> parts) {
    parts.insert(parts.end(), ledger.begin(), ledger.end());
    return parts;
  };
  const ModelInfo sizes = engine()->info();
  const auto pool = static_cast<size_t>(sizes.kv_pool_bytes);
  const auto workspace = static_cast<size_t>(sizes.workspace_bytes);
  fails(16, with({"cannot allocate", "a smaller model"}));
  fails(std::min(pool, workspace) - 1, with({"cannot allocate", "max_prefill_token_num"}));
  fails(std::max(pool, workspace) - 1, with({"cannot allocate", "cache_max_entry_count"}));
  // A full device while it runs ends the requests, like any other fault there.
  faults.reset();
  const auto failing = engine();
  faults.kind = Faults::Kind::kOutOfMemory;
  faults.fail_in = "linear";
  const Result r = run(*failing, greedy(some_ids(5, 1), 2));
  EXPECT_EQ(r.reason, FinishReason::kError);
  EXPECT_NE(r.message.find("device is full"), std::string::npos) << r.message;
  EXPECT_FALSE(failing->health().ok);
}

TEST_F(EngineFaults, AFaultAtAnyMomentOfLoadingIsAnErrorAndLeaksNothing) {
  faults.kind = Faults::Kind::kDevice;
  for (int64_t at = 1;; ++at) {
    faults.reset();
    faults.fail_at = at;
    try {
      const auto loaded = engine();
      faults.fail_at = 0;
      EXPECT_GT(at, 5);
      EXPECT_EQ(run(*loaded, greedy(some_ids(5, 1), 1)).tokens.size(), 1U);
      break;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kDevice);
    }
    EXPECT_EQ(faults.alive, 0);
  }
}

TEST_F(EngineFaults, NoFiniteLogitFailsThatRequestOnly) {
  const auto damaged = engine();
  Request good = greedy(some_ids(70, 1), 60);
  good.sampling.seed = 1;
  const Result expected = run(*damaged, good);
  Request bad = in_session(5, greedy(some_ids(70, 2), 60));
  bad.sampling.seed = 99;
  faults.nan_seed = 99;
  faults.nan_from = 20;
  Stream a = damaged->submit(good);
  Stream b = damaged->submit(bad);
  Stream c = damaged->submit(good);
  const Result failed = read(b);
  EXPECT_EQ(failed.reason, FinishReason::kError);
  EXPECT_EQ(failed.error, ErrorCode::kInternal);
  EXPECT_EQ(failed.tokens.size(), 20U);
  EXPECT_NE(failed.message.find("finite"), std::string::npos) << failed.message;
  EXPECT_EQ(read(a).tokens, expected.tokens);
  EXPECT_EQ(read(c).tokens, expected.tokens);
  EXPECT_TRUE(damaged->health().ok);
  expect_quiet(*damaged);
  EXPECT_EQ(damaged->stats().requests_failed, 1U);
  // The session goes on from what there was.
  faults.nan_seed = 0;
  const auto session = damaged->session(5);
  ASSERT_TRUE(session);
  EXPECT_EQ(session->token_ids, testing::join(bad.input_ids, failed.tokens));
  EXPECT_EQ(run(*damaged, in_session(5, greedy(some_ids(3, 1), 4))).tokens.size(), 4U);
}

TEST_F(EngineFaults, DamagedPromptLogprobsKeepTheirPlaces) {
  const auto damaged = engine();
  testing::Ids prompt(20);
  for (int32_t i = 0; i < 20; ++i) prompt[static_cast<size_t>(i)] = 10 + i;
  Request request = greedy(prompt, 3);
  request.sampling.prompt_logprobs = 2;
  const Result expected = run(*damaged, request);
  ASSERT_EQ(expected.prompt_logprobs.size(), 19U);
  faults.nan_prompt_token = 15;
  const Result r = run(*damaged, request);
  EXPECT_EQ(r.tokens, expected.tokens);
  ASSERT_EQ(r.prompt_logprobs.size(), 19U);
  for (size_t i = 0; i < 19; ++i) {
    EXPECT_EQ(r.prompt_logprobs[i].chosen.token_id, 11 + static_cast<int32_t>(i));
    if (i == 4) {
      EXPECT_TRUE(std::isnan(r.prompt_logprobs[i].chosen.logprob));
      EXPECT_TRUE(r.prompt_logprobs[i].top.empty());
    } else {
      EXPECT_EQ(r.prompt_logprobs[i], expected.prompt_logprobs[i]);
    }
  }
}

TEST_F(EngineFaults, ContinuationsOfADamagedRequestAllEnd) {
  const auto damaged = engine();
  Request request = greedy(some_ids(20, 1), 30);
  request.sampling.n = 3;
  request.sampling.seed = 7;
  faults.nan_seed = 7;
  for (const uint32_t from : {0U, 1U, 10U}) {
    faults.nan_from = from;
    Stream stream = damaged->submit(request);
    for (const Result& r : read_all(stream, 3)) {
      EXPECT_EQ(r.reason, FinishReason::kError);
      EXPECT_EQ(r.tokens.size(), from);
    }
  }
  expect_quiet(*damaged);
  EXPECT_EQ(damaged->stats().requests_failed, 3U);
}

}  // namespace
}  // namespace treadle
