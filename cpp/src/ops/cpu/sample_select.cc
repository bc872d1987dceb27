#include "ops/cpu/sample_select.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace treadle::ops::cpu {
namespace {

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

// Candidates are taken this many tokens at a time before the next search for one.
constexpr int32_t kStride = 64;

using Iterator = std::vector<Candidate>::iterator;

// The part of the candidates in which the head that reaches a mass ends.
struct HeadEnd {
  Iterator low, high;
  double before;  // weight of what stands in front of low
};

// One pass over slices of the range of logits narrows a long list down to one slice. Leaves the
// list as it is when the logits cannot be cut into slices.
HeadEnd narrow_by_slices(HeadEnd end, double mass) {
  constexpr int32_t kSlices = 1024;
  float best = end.low->logit;
  float worst = best;
  for (auto c = end.low; c != end.high; ++c) {
    best = std::max(best, c->logit);
    worst = std::min(worst, c->logit);
  }
  const float per_logit = (kSlices - 1) / (best - worst);
  if (!std::isfinite(per_logit) || !std::isfinite(best - worst)) return end;
  const auto slice_of = [=](const Candidate& c) {
    return std::min(static_cast<int32_t>((best - c.logit) * per_logit), kSlices - 1);
  };
  double masses[kSlices] = {};
  for (auto c = end.low; c != end.high; ++c) masses[slice_of(*c)] += c->weight;
  int32_t slice = 0;
  while (slice < kSlices - 1 && end.before + masses[slice] < mass) end.before += masses[slice++];
  end.low =
      std::partition(end.low, end.high, [&](const Candidate& c) { return slice_of(c) < slice; });
  end.high =
      std::partition(end.low, end.high, [&](const Candidate& c) { return slice_of(c) == slice; });
  return end;
}

}  // namespace

void select_top(const SampleKernels& kernels, const float* logits, int32_t n, int32_t k,
                std::vector<Candidate>& out) {
  // Twice k candidates are gathered before they are cut back to k, so that cutting costs a constant
  // time for each of them. The last of the k is then the bar for the rest; a later token that
  // equals it has a higher id and loses.
  const size_t keep = static_cast<size_t>(k);
  const size_t full = std::max<size_t>(2 * keep, 256);
  float threshold = kMinusInf;
  const auto cut = [&] {
    std::nth_element(out.begin(), out.begin() + (k - 1), out.end(), ranks_before);
    out.resize(keep);
    threshold = out.back().logit;
  };
  out.clear();
  for (int32_t i = kernels.next_above(logits, 0, n, threshold); i < n;
       i = kernels.next_above(logits, i, n, threshold)) {
    const int32_t end = std::min(i + kStride, n);
    for (; i < end; ++i) {
      if (logits[i] > threshold) out.push_back({logits[i], 0.0F, i});
    }
    if (out.size() >= full) cut();
  }
  if (out.size() > keep) cut();
}

void select_above(const SampleKernels& kernels, const float* logits, int32_t n, float threshold,
                  std::vector<Candidate>& out) {
  out.clear();
  for (int32_t i = kernels.next_above(logits, 0, n, threshold); i < n;
       i = kernels.next_above(logits, i, n, threshold)) {
    const int32_t end = std::min(i + kStride, n);
    for (; i < end; ++i) {
      if (logits[i] > threshold) out.push_back({logits[i], 0.0F, i});
    }
  }
}

size_t select_mass(std::vector<Candidate>& candidates, double mass) {
  HeadEnd end{candidates.begin(), candidates.end(), 0.0};
  if (candidates.size() > 4096) end = narrow_by_slices(end, mass);
  // Halves the range that holds the end of the head, as a quickselect by weight would.
  auto [low, high, before] = end;
  while (high - low > 32) {
    const auto middle = low + (high - low) / 2;
    std::nth_element(low, middle, high, ranks_before);
    double head = before;
    for (auto c = low; c != middle; ++c) head += c->weight;
    if (head >= mass) {
      high = middle;
    } else {
      before = head;
      low = middle;
    }
  }
  std::sort(low, high, ranks_before);
  for (auto c = low; c != high; ++c) {
    before += c->weight;
    if (before >= mass) return static_cast<size_t>(c - candidates.begin()) + 1;
  }
  return static_cast<size_t>(high - candidates.begin());
}

}  // namespace treadle::ops::cpu
