#include "ops/cpu/sample_draw.h"

#include <algorithm>
#include <cstddef>
#include <iterator>

namespace treadle::ops::cpu {
namespace {

int32_t block_size(int32_t begin, int32_t vocab) { return std::min(kWeightBlock, vocab - begin); }

// Walks weights[0..n) from `running` <= target and returns the index at which it exceeds the
// target. Rounding may have put that past the end: then the last weight above 0. -1 when there is
// none.
int32_t walk(const float* weights, int32_t n, double running, double target) {
  for (int32_t i = 0; i < n; ++i) {
    running += weights[i];
    if (running > target) return i;
  }
  while (n > 0 && !(weights[n - 1] > 0.0F)) --n;
  return n - 1;
}

}  // namespace

double total_weight(const SampleKernels& kernels, const WeightedRow& row,
                    std::vector<double>* blocks) {
  if (blocks != nullptr) blocks->clear();
  double total = 0.0;
  for (int32_t i = 0; i < row.vocab; i += kWeightBlock) {
    const double sum = kernels.weights(row.logits + i, block_size(i, row.vocab), row.max, row.scale,
                                       row.floor, nullptr);
    if (blocks != nullptr) blocks->push_back(sum);
    total += sum;
  }
  return total;
}

void weigh(const SampleKernels& kernels, const WeightedRow& row,
           std::vector<Candidate>& candidates) {
  float buffer[256];
  for (size_t begin = 0; begin < candidates.size(); begin += std::size(buffer)) {
    const size_t n = std::min(std::size(buffer), candidates.size() - begin);
    for (size_t i = 0; i < n; ++i) buffer[i] = candidates[begin + i].logit;
    kernels.weights(buffer, static_cast<int32_t>(n), row.max, row.scale, 0.0F, buffer);
    for (size_t i = 0; i < n; ++i) candidates[begin + i].weight = buffer[i];
  }
}

int32_t draw_from_row(const SampleKernels& kernels, const WeightedRow& row, double uniform,
                      std::vector<double>& blocks) {
  const double target = uniform * total_weight(kernels, row, &blocks);
  size_t block = 0;
  double before = 0.0;
  double running = 0.0;
  for (size_t b = 0; b < blocks.size(); ++b) {
    if (!(blocks[b] > 0.0)) continue;
    block = b;
    before = running;
    running += blocks[b];
    if (running > target) break;
  }
  // Only the sums were kept: the weights of the one block are worked out again.
  const int32_t begin = static_cast<int32_t>(block) * kWeightBlock;
  const int32_t n = block_size(begin, row.vocab);
  float weights[kWeightBlock];
  kernels.weights(row.logits + begin, n, row.max, row.scale, row.floor, weights);
  return begin + walk(weights, n, before, target);
}

int32_t draw_from(std::vector<Candidate>& candidates, int32_t vocab, double uniform,
                  std::vector<float>& weights) {
  double total = 0.0;
  if (candidates.size() > 512 && candidates.size() > static_cast<size_t>(vocab) / 64) {
    // So many that a pass over the vocabulary is cheaper than sorting them.
    weights.assign(vocab, 0.0F);
    for (const Candidate& c : candidates) weights[c.token] = c.weight;
    for (const float w : weights) total += w;
    return walk(weights.data(), vocab, 0.0, uniform * total);
  }
  std::sort(candidates.begin(), candidates.end(),
            [](const Candidate& a, const Candidate& b) { return a.token < b.token; });
  weights.clear();
  for (const Candidate& c : candidates) {
    weights.push_back(c.weight);
    total += c.weight;
  }
  const int32_t n = static_cast<int32_t>(weights.size());
  return candidates[walk(weights.data(), n, 0.0, uniform * total)].token;
}

}  // namespace treadle::ops::cpu
