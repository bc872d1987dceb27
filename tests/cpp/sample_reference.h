// The sampling op written for reading: double precision, full sorts, no shortcuts.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <vector>

#include "ops/sample_params.h"

namespace treadle::ops::reference {

inline std::vector<double> adjusted(const SampleRow& row, const std::vector<float>& logits) {
  std::vector<double> x(logits.begin(), logits.end());
  for (int32_t i = 0; i < row.bias_count; ++i) x[row.bias[i].token] += row.bias[i].bias;
  const std::set<int32_t> seen(row.history, row.history + row.history_len);
  for (const int32_t t : seen) {
    x[t] = x[t] > 0 ? x[t] / row.repetition_penalty : x[t] * row.repetition_penalty;
  }
  std::map<int32_t, int> counts;
  for (int32_t i = row.output_begin; i < row.history_len; ++i) ++counts[row.history[i]];
  for (const auto& [t, count] : counts) {
    x[t] -= double{row.presence_penalty} + double{row.frequency_penalty} * count;
  }
  for (int32_t i = 0; i < row.barred_count; ++i) {
    x[row.barred[i]] = -std::numeric_limits<double>::infinity();
  }
  // The op keeps logits in float32 between the steps.
  for (double& v : x) v = static_cast<float>(v);
  return x;
}

inline std::vector<double> log_softmax(const std::vector<double>& x) {
  const double max = *std::max_element(x.begin(), x.end());
  double sum = 0.0;
  for (const double v : x) sum += std::exp(v - max);
  std::vector<double> out;
  for (const double v : x) out.push_back(v - max - std::log(sum));
  return out;
}

// Token ids, best first, the lower id first among equals; barred ones left out.
inline std::vector<int32_t> ranked(const std::vector<double>& x) {
  std::vector<int32_t> order(x.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return x[a] > x[b]; });
  std::erase_if(order, [&](int32_t t) { return std::isinf(x[t]); });
  return order;
}

struct Kept {
  std::vector<int32_t> tokens;  // best first
  std::vector<double> weights;  // exp((x - max) / temperature)
  bool near_boundary = false;   // rounding may decide whether one more or less is kept
};

inline Kept kept_tokens(const SampleRow& row, const std::vector<double>& x) {
  constexpr double kSlack = 1e-5;
  Kept kept{ranked(x), {}, false};
  const double max = x[kept.tokens[0]];
  if (row.top_k > 0 && static_cast<size_t>(row.top_k) < kept.tokens.size()) {
    kept.tokens.resize(static_cast<size_t>(row.top_k));
  }
  for (const int32_t t : kept.tokens) {
    kept.weights.push_back(std::exp((x[t] - max) / double{row.temperature}));
  }
  if (row.top_p < 1.0F) {
    const double total = std::accumulate(kept.weights.begin(), kept.weights.end(), 0.0);
    double sum = 0.0;
    size_t n = 0;
    while (n < kept.weights.size()) {
      sum += kept.weights[n++];
      if (std::fabs(sum / total - double{row.top_p}) < kSlack) kept.near_boundary = true;
      if (sum >= double{row.top_p} * total) break;
    }
    kept.tokens.resize(n);
    kept.weights.resize(n);
  }
  size_t n = 0;
  while (n < kept.weights.size() && kept.weights[n] >= double{row.min_p}) ++n;
  for (const double w : kept.weights) {
    if (row.min_p > 0.0F && std::fabs(w / row.min_p - 1.0) < kSlack) kept.near_boundary = true;
  }
  kept.tokens.resize(n);
  kept.weights.resize(n);
  return kept;
}

// The part [low, high] of [0, 1] in which a uniform number draws `token`; low > high when it is not
// kept.
struct Slot {
  double low = 1.0;
  double high = 0.0;
};

inline Slot slot_of(const Kept& kept, int32_t token) {
  std::map<int32_t, double> by_id;
  for (size_t i = 0; i < kept.tokens.size(); ++i) by_id[kept.tokens[i]] = kept.weights[i];
  double total = 0.0;
  for (const auto& [t, w] : by_id) total += w;
  double running = 0.0;
  for (const auto& [t, w] : by_id) {
    if (t == token) return {running / total, (running + w) / total};
    running += w;
  }
  return {};
}

}  // namespace treadle::ops::reference
