// What the tests of sessions share.
#pragma once

#include <memory>
#include <string>

#include "engine_testing.h"

namespace treadle::testing {

inline Request with_logprobs(Request request) {
  request.sampling.logprobs = 2;
  return request;
}

/// An engine that keeps and shares nothing: the reference.
inline std::unique_ptr<Engine> fresh_engine(const std::string& path = tiny_model(),
                                            EngineConfig config = tiny_config()) {
  config.max_batch_size = 1;
  config.enable_prefix_caching = false;
  return load(path, config);
}

inline void expect_same(const Result& a, const Result& b) {
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.logprobs, b.logprobs);
  EXPECT_EQ(a.reason, b.reason);
}

inline Ids history(const Engine& engine, uint64_t id) {
  const auto session = engine.session(id);
  return session ? session->token_ids : Ids{};
}

}  // namespace treadle::testing
