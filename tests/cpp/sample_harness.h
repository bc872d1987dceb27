// Runs the CPU sampling op on rows given as vectors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "ops/cpu/sample.h"
#include "ops/cpu/thread_pool.h"

namespace treadle::ops::cpu {

struct Result {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
  std::vector<TopLogprob> top;  // [R][kMaxTopLogprobs]
};

inline Result run(std::vector<float> logits, int32_t vocab, const std::vector<SampleRow>& rows,
                  int threads = 1) {
  Result r;
  r.tokens.assign(rows.size(), -7);
  r.logprobs.assign(rows.size(), -7.0F);
  r.top.assign(rows.size() * kMaxTopLogprobs, {-7, -7.0F});
  SampleParams p;
  p.logits = logits.data();
  p.rows = rows.data();
  p.num_rows = static_cast<int32_t>(rows.size());
  p.vocab = vocab;
  p.tokens = r.tokens.data();
  p.logprobs = r.logprobs.data();
  p.top = r.top.data();
  ThreadPool pool(threads);
  sample(pool, p);
  return r;
}

inline Result run_one(const std::vector<float>& logits, const SampleRow& row) {
  return run(logits, static_cast<int32_t>(logits.size()), {row});
}

inline int32_t token_of(const std::vector<float>& logits, const SampleRow& row) {
  return run_one(logits, row).tokens[0];
}

inline std::vector<float> normal_logits(std::mt19937& rng, int32_t n, float sigma) {
  std::normal_distribution<float> normal(0.0F, sigma);
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) v = normal(rng);
  return x;
}

}  // namespace treadle::ops::cpu
