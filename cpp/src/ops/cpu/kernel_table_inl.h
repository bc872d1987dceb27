// The table of kernels for the vectors V.
#pragma once

#include "ops/cpu/attention_inl.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/linear_inl.h"
#include "ops/cpu/token_inl.h"

namespace treadle::ops::cpu {

template <class V>
inline void exp_all(const float* in, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += V::kWidth) {
    const int n = count - i < V::kWidth ? static_cast<int>(count - i) : V::kWidth;
    V::store_n(out + i, exp<V>(V::load_n(in + i, n)), n);
  }
}

template <class V>
constexpr Kernels kernel_table(const char* name) {
  Kernels k;
  k.name = name;
  k.linear = linear<V>;
  k.attention = attention<V>;
  k.attention_segment = attention_segment<V>;
  k.attention_merge = attention_merge<V>;
  k.rms_norm = rms_norm<V>;
  k.qkv = qkv<V>;
  k.to_float = to_float_all<V>;
  k.exp = exp_all<V>;
  return k;
}

}  // namespace treadle::ops::cpu
