// The draw: the first kept token, by id, at which the running weight exceeds uniform * total.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/cpu/sample_kernels.h"
#include "ops/cpu/sample_select.h"

namespace treadle::ops::cpu {

/// A row whose weights are exp((logit - max) * scale), those below `floor` taken as 0.
struct WeightedRow {
  const float* logits = nullptr;  // [vocab]
  int32_t vocab = 0;
  float max = 0.0F;
  float scale = 1.0F;  // 1 / temperature
  float floor = 0.0F;  // min_p: the largest weight is 1
};

/// Sum of the weights. `blocks`, unless null, receives the sums of the blocks of kWeightBlock.
double total_weight(const SampleKernels& kernels, const WeightedRow& row,
                    std::vector<double>* blocks);

/// Fills in the candidates' weights (no floor).
void weigh(const SampleKernels& kernels, const WeightedRow& row,
           std::vector<Candidate>& candidates);

/// Draws from the whole row. `blocks` is scratch. Some weight is above 0.
int32_t draw_from_row(const SampleKernels& kernels, const WeightedRow& row, double uniform,
                      std::vector<double>& blocks);

/// Draws from the candidates, which it sorts by id. Some weight is above 0.
int32_t draw_from(std::vector<Candidate>& candidates, int32_t vocab, double uniform,
                  std::vector<float>& weights);

}  // namespace treadle::ops::cpu
