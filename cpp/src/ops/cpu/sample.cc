#include "ops/cpu/sample.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <new>
#include <vector>

#include "ops/cpu/sample_adjust.h"
#include "ops/cpu/sample_draw.h"
#include "ops/cpu/sample_kernels.h"
#include "ops/cpu/sample_select.h"
#include "ops/cpu/thread_pool.h"
#include "ops/philox.h"

namespace treadle::ops::cpu {
namespace {

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();
constexpr float kLargest = std::numeric_limits<float>::max();

// Logits up to which a call is done before the pool would have woken up.
constexpr int64_t kSmallBatch = 1 << 15;

// What a thread works with; grows to what the rows need and stays.
struct Scratch {
  std::vector<int32_t> counts;
  std::vector<Candidate> candidates;
  std::vector<double> blocks;
  std::vector<float> weights;
};

int32_t first_at(const SampleKernels& kernels, const WeightedRow& row, float logit) {
  return kernels.next_above(row.logits, 0, row.vocab, std::nextafter(logit, kMinusInf));
}

// Tokens at or below this logit weigh less than (1 - top_p) * total together, so top_p is reached
// without them. Half of that, and a little less, leaves room for rounding.
float top_p_floor(const WeightedRow& row, double top_p, double total) {
  const double weight = 0.5 * (1.0 - top_p) * total / row.vocab;
  const double floor = row.max + std::log(weight) / row.scale - 1e-6 * std::fabs(row.max);
  return floor > -double{kLargest} ? static_cast<float>(floor) : kMinusInf;
}

int32_t draw_token(const SampleKernels& kernels, const SampleRow& r, WeightedRow& row,
                   Scratch& scratch) {
  // The inverse of a tiny temperature may overflow; clamped, the largest logit still weighs 1.
  row.scale = std::min(1.0F / r.temperature, kLargest);
  const double uniform = sample_uniform(r.seed, r.stream, r.position);
  const bool by_rank = r.top_k > 0 && r.top_k < row.vocab;
  const bool by_mass = r.top_p < 1.0F;
  if (!by_rank && !by_mass) {
    row.floor = r.min_p;
    return draw_from_row(kernels, row, uniform, scratch.blocks);
  }

  std::vector<Candidate>& kept = scratch.candidates;
  double total = 0.0;
  if (by_rank) {
    select_top(kernels, row.logits, row.vocab, r.top_k, kept);
    weigh(kernels, row, kept);
    for (const Candidate& c : kept) total += c.weight;
  } else {
    total = total_weight(kernels, row, nullptr);
    select_above(kernels, row.logits, row.vocab, top_p_floor(row, r.top_p, total), kept);
    weigh(kernels, row, kept);
  }
  if (by_mass) kept.resize(select_mass(kept, double{r.top_p} * total));
  if (r.min_p > 0.0F) {
    std::erase_if(kept, [&](const Candidate& c) { return c.weight < r.min_p; });
  }
  return draw_from(kept, row.vocab, uniform, scratch.weights);
}

void report_top(const SampleKernels& kernels, const WeightedRow& row, int32_t count, double log_sum,
                std::vector<Candidate>& best, TopLogprob* top) {
  select_top(kernels, row.logits, row.vocab, count, best);
  std::sort(best.begin(), best.end(), ranks_before);
  std::fill_n(top, count, TopLogprob{-1, kMinusInf});
  for (size_t i = 0; i < best.size(); ++i) {
    const double logprob = double{best[i].logit} - row.max - log_sum;
    top[i] = {best[i].token, static_cast<float>(logprob)};
  }
}

void sample_row(const SampleParams& p, int32_t index, Scratch& scratch) {
  const SampleKernels& kernels = sample_kernels();
  const SampleRow& r = p.rows[index];
  float* logits = p.logits + static_cast<size_t>(index) * p.vocab;
  float* logprob = p.logprobs != nullptr && r.num_logprobs >= 0 ? p.logprobs + index : nullptr;
  const int32_t top_count = p.top != nullptr ? std::min(r.num_logprobs, kMaxTopLogprobs) : 0;
  TopLogprob* top = p.top + (top_count > 0 ? static_cast<size_t>(index) * kMaxTopLogprobs : 0);
  int32_t& token = p.tokens[index];

  const bool forced = r.forced_token >= 0;
  if (!forced) adjust_logits(r, logits, p.vocab, scratch.counts);

  WeightedRow row{.logits = logits, .vocab = p.vocab};
  if (!kernels.scan(logits, p.vocab, &row.max) || row.max == kMinusInf ||
      r.forced_token >= p.vocab) {
    token = -1;
    if (logprob != nullptr) *logprob = kMinusInf;
    if (top_count > 0) std::fill_n(top, top_count, TopLogprob{-1, kMinusInf});
    return;
  }

  if (forced) {
    token = r.forced_token;
  } else if (r.temperature == 0.0F || r.top_k == 1) {
    token = first_at(kernels, row, row.max);
  } else {
    token = draw_token(kernels, r, row, scratch);
  }

  if (logprob == nullptr && top_count <= 0) return;
  row.scale = 1.0F;
  row.floor = 0.0F;
  const double log_sum = std::log(total_weight(kernels, row, nullptr));
  if (logprob != nullptr) {
    *logprob = static_cast<float>(double{logits[token]} - row.max - log_sum);
  }
  if (top_count > 0) report_top(kernels, row, top_count, log_sum, scratch.candidates, top);
}

void sample_row_guarded(const SampleParams& p, int64_t index) {
  // Threads of the pool live as long as the backend, so the scratch is allocated once for each.
  thread_local Scratch scratch;
  try {
    sample_row(p, static_cast<int32_t>(index), scratch);
  } catch (const std::bad_alloc&) {
    p.tokens[index] = -1;  // the pool's threads must not throw
    scratch = {};
  }
}

}  // namespace

void sample(ThreadPool& pool, const SampleParams& params) {
  if (int64_t{params.num_rows} * params.vocab <= kSmallBatch) {
    for (int32_t i = 0; i < params.num_rows; ++i) sample_row_guarded(params, i);
    return;
  }
  pool.parallel_for(params.num_rows,
                    [&](int64_t i, int /*thread*/) { sample_row_guarded(params, i); });
}

}  // namespace treadle::ops::cpu
