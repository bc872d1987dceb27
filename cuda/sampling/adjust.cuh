// Bias, penalties and barred tokens, as cpp/src/ops/cpu/sample_adjust.cc has them: in doubles, each
// step rounded to float, finite logits kept finite.
#pragma once

#include "ops/sample_params.h"
#include "sampling/row.cuh"

namespace treadle::cuda {

__device__ __forceinline__ void replace_finite(float& logit, double value) {
  if (!isfinite(logit)) return;
  const double limit = FLT_MAX;
  logit = static_cast<float>(value < -limit ? -limit : value > limit ? limit : value);
}

/// True in exactly one thread for each token since the bitmap was cleared.
__device__ __forceinline__ bool first_to_see(uint32_t* bitmap, int token) {
  const uint32_t bit = 1U << (token % 32);
  return (atomicOr(&bitmap[token / 32], bit) & bit) == 0;
}

__device__ __forceinline__ void clear_bitmap(uint32_t* bitmap, int vocab) {
  for (int i = threadIdx.x; i < (vocab + 31) / 32; i += kRowThreads) bitmap[i] = 0;
  __syncthreads();
}

/// `counts`: [vocab] zeros, left as zeros; null where no row counts tokens.
__device__ inline void adjust_row(const ops::SampleRow& r, float* logits, int vocab,
                                  int32_t* counts, uint32_t* bitmap) {
  const auto in_vocab = [vocab](int token) { return token >= 0 && token < vocab; };
  for (int i = threadIdx.x; i < r.bias_count; i += kRowThreads) {
    const int token = r.bias[i].token;
    if (!in_vocab(token)) continue;
    bool first = true;
    for (int j = 0; j < i && first; ++j) first = r.bias[j].token != token;
    if (!first) continue;
    // One thread applies all entries of a token, in their order.
    float x = logits[token];
    for (int j = i; j < r.bias_count; ++j) {
      if (r.bias[j].token != token) continue;
      const float bias = r.bias[j].bias;
      if (isfinite(bias)) {
        replace_finite(x, double{x} + bias);
      } else {
        x += bias;
      }
    }
    logits[token] = x;
  }
  __syncthreads();

  if (r.repetition_penalty != 1.0F && r.history_len > 0) {
    clear_bitmap(bitmap, vocab);
    for (int i = threadIdx.x; i < r.history_len; i += kRowThreads) {
      const int token = r.history[i];
      if (!in_vocab(token) || !first_to_see(bitmap, token)) continue;
      const float x = logits[token];
      replace_finite(logits[token], x > 0.0F ? double{x} / r.repetition_penalty
                                             : double{x} * r.repetition_penalty);
    }
    __syncthreads();
  }

  if ((r.presence_penalty != 0.0F || r.frequency_penalty != 0.0F) &&
      r.output_begin < r.history_len) {
    clear_bitmap(bitmap, vocab);
    for (int i = r.output_begin + threadIdx.x; i < r.history_len; i += kRowThreads) {
      if (in_vocab(r.history[i])) atomicAdd(&counts[r.history[i]], 1);
    }
    __syncthreads();
    for (int i = r.output_begin + threadIdx.x; i < r.history_len; i += kRowThreads) {
      const int token = r.history[i];
      if (!in_vocab(token) || !first_to_see(bitmap, token)) continue;
      const int count = atomicExch(&counts[token], 0);
      const double x = logits[token];
      replace_finite(logits[token], __dsub_rn(__dsub_rn(x, r.presence_penalty),
                                              __dmul_rn(double{r.frequency_penalty}, count)));
    }
    __syncthreads();
  }

  for (int i = threadIdx.x; i < r.barred_count; i += kRowThreads) {
    if (in_vocab(r.barred[i])) logits[r.barred[i]] = -INFINITY;
  }
  __syncthreads();
}

}  // namespace treadle::cuda
