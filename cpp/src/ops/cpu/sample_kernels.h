// The passes over a row of logits that the sampling op is made of, for each instruction set.
//
// All builds run the same sixteen-lane program without fused multiply-add, so their results are
// bit-identical.
#pragma once

#include <cstdint>

namespace treadle::ops::cpu {

/// Elements whose weights are summed together; a row's total is the sum over its blocks in order.
constexpr int32_t kWeightBlock = 1024;

struct SampleKernels {
  /// Largest of x[0..n). False when some x is NaN or +inf; *max is -inf when all are -inf or n = 0.
  bool (*scan)(const float* x, int32_t n, float* max);

  /// First i >= begin with x[i] > threshold, or n.
  int32_t (*next_above)(const float* x, int32_t begin, int32_t n, float threshold);

  /// w[i] = exp((x[i] - max) * scale), or 0 where that is below `floor`; returns their sum. n is at
  /// most kWeightBlock. x <= max; -inf gives 0. w may be x, or null when only the sum is wanted.
  /// Relative error of a weight: about 1e-7 + 1e-7 * |(x - max) * scale|.
  double (*weights)(const float* x, int32_t n, float max, float scale, float floor, float* w);
};

/// Those of the best instruction set that this processor runs.
const SampleKernels& sample_kernels();

// One table for each build of sample_kernels_inl.h; null where the compiler does not know the
// instruction set.
const SampleKernels* sample_kernels_plain();
const SampleKernels* sample_kernels_avx2();
const SampleKernels* sample_kernels_avx512();

}  // namespace treadle::ops::cpu
