// Partial selection among a row's logits. Tokens are ordered by logit, largest first, the lower id
// first among equals; every filter of the sampling op keeps a head of that order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ops/cpu/sample_kernels.h"

namespace treadle::ops::cpu {

struct Candidate {
  float logit = 0.0F;
  float weight = 0.0F;  // exp((logit - max) / temperature), once it is known
  int32_t token = 0;
};

inline bool ranks_before(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

/// Fills `out` with the k first tokens of logits[0..n), in no order. Tokens at -inf are left out,
/// so there may be fewer. k >= 1. Takes time proportional to n, whatever k is.
void select_top(const SampleKernels& kernels, const float* logits, int32_t n, int32_t k,
                std::vector<Candidate>& out);

/// Fills `out` with the tokens of logits[0..n) above `threshold`, by id.
void select_above(const SampleKernels& kernels, const float* logits, int32_t n, float threshold,
                  std::vector<Candidate>& out);

/// Moves the shortest head of the order whose weights reach `mass` to the front of `candidates` and
/// returns its length: at least 1, all of them when they do not reach it. Candidates not empty.
size_t select_mass(std::vector<Candidate>& candidates, double mass);

}  // namespace treadle::ops::cpu
