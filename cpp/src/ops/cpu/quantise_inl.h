// One head of K or V of one token as int8 with a scale and a zero, and back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "ops/cpu/kernels.h"

namespace treadle::ops::cpu {

/// The least and the largest value become -127.5 and 127.5, which round to -128 and 127. Values
/// that are all equal are `zero`, exactly. A head with a value that is not finite becomes
/// not-a-number: a sequence that has broken down shows it, as with 16 bits.
template <class V>
inline KvScale scale_of_values(const float* in, int n) {
  float least = in[0];
  float largest = in[0];
  bool finite = true;
  for (int i = 0; i < n; ++i) {
    finite &= __builtin_isfinite(in[i]);
    least = in[i] < least ? in[i] : least;
    largest = in[i] > largest ? in[i] : largest;
  }
  if (!finite) return {0.0F, std::numeric_limits<float>::quiet_NaN()};
  // Halves first: the difference of any two finite halves is finite.
  return {(0.5F * largest - 0.5F * least) / 127.5F, 0.5F * least + 0.5F * largest};
}

/// out: n elements, `stride` apart. Values beyond the range of s become its ends. scratch: [n]
/// floats.
template <class V>
inline void quantise(const float* in, int n, KvScale s, int8_t* out, int stride, float* scratch) {
  const auto zero = V::set1(s.zero);
  const auto scale = V::set1(s.scale > 0.0F ? s.scale : 1.0F);
  for (int i = 0; i < n; i += V::kWidth) {
    const int lanes = n - i < V::kWidth ? n - i : V::kWidth;
    auto q = V::div(V::sub(V::load_n(in + i, lanes), zero), scale);
    // The bound comes second: it takes the place of what is not a number.
    q = V::min(V::max(q, V::set1(-128.0F)), V::set1(127.0F));
    V::store_n(scratch + i, V::round(q), lanes);
  }
  for (int i = 0; i < n; ++i) out[size_t(i) * size_t(stride)] = static_cast<int8_t>(scratch[i]);
}

/// A block's keys of one head: [dim][64] int8, where each column is a token of its own scale.
template <class V>
inline void restore_keys(const int8_t* in, const KvScale* scales, int dim, float* out) {
  using F = typename V::F;
  constexpr int kVectors = kBlockTokens / V::kWidth;
  alignas(64) float lanes[2][kBlockTokens];
  for (int i = 0; i < kBlockTokens; ++i) {
    lanes[0][i] = scales[i].scale;
    lanes[1][i] = scales[i].zero;
  }
  for (int v = 0; v < kVectors; ++v) {
    const F scale = V::load(lanes[0] + v * V::kWidth);
    const F zero = V::load(lanes[1] + v * V::kWidth);
    for (int d = 0; d < dim; ++d) {
      const size_t at = size_t(d) * kBlockTokens + size_t(v) * V::kWidth;
      V::store(out + at, V::fma(V::load(in + at), scale, zero));
    }
  }
}

/// One token's values of one head.
template <class V>
inline void restore_values(const int8_t* in, KvScale s, int n, float* out) {
  int i = 0;
  for (; i + V::kWidth <= n; i += V::kWidth) {
    V::store(out + i, V::fma(V::load(in + i), V::set1(s.scale), V::set1(s.zero)));
  }
  for (; i < n; ++i) out[i] = static_cast<float>(in[i]) * s.scale + s.zero;
}

}  // namespace treadle::ops::cpu
