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

/// Penalties of the tokens [begin, end). marks: [end - begin]
__device__ inline void penalize(const ops::SampleRow& r, float* logits, int begin, int end,
                                uint32_t* marks) {
  // A token's mark: bit 0 says that it was met, the rest counts it in the output.
  constexpr uint32_t kMet = 1;
  constexpr uint32_t kOnce = 2;
  for (int i = threadIdx.x; i < end - begin; i += kRowThreads) marks[i] = 0;
  __syncthreads();
  const auto for_each_token = [&](int from, auto&& f) {
    for (int i = from + threadIdx.x; i < r.history_len; i += kRowThreads) {
      const int token = r.history[i];
      if (token >= begin && token < end) f(logits[token], marks[token - begin]);
    }
    __syncthreads();
  };
  if (r.repetition_penalty != 1.0F) {
    for_each_token(0, [&](float& x, uint32_t& mark) {
      if ((atomicOr(&mark, kMet) & kMet) != 0) return;
      replace_finite(
          x, x > 0.0F ? double{x} / r.repetition_penalty : double{x} * r.repetition_penalty);
    });
  }
  if (ops::counts_tokens(r)) {
    for_each_token(r.output_begin, [&](float&, uint32_t& mark) { atomicAdd(&mark, kOnce); });
    for_each_token(r.output_begin, [&](float& x, uint32_t& mark) {
      const uint32_t count = atomicAnd(&mark, kMet) / kOnce;
      if (count == 0) return;
      replace_finite(x, __dsub_rn(__dsub_rn(x, r.presence_penalty),
                                  __dmul_rn(double{r.frequency_penalty}, count)));
    });
  }
}

/// Changes the logits of the tokens [begin, end) of a row. `marks`: shared memory for `room` marks.
__device__ inline void adjust_part(const ops::SampleRow& r, float* logits, int begin, int end,
                                   uint32_t* marks, int room) {
  const auto mine = [=](int token) { return token >= begin && token < end; };
  for (int i = threadIdx.x; i < r.bias_count; i += kRowThreads) {
    const int token = r.bias[i].token;
    if (!mine(token)) continue;
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

  if (r.history_len > 0 && (r.repetition_penalty != 1.0F || ops::counts_tokens(r))) {
    for (int from = begin; from < end; from += room) {
      penalize(r, logits, from, min(from + room, end), marks);
    }
  }
  for (int i = threadIdx.x; i < r.barred_count; i += kRowThreads) {
    if (mine(r.barred[i])) logits[r.barred[i]] = -INFINITY;
  }
  __syncthreads();
}

}  // namespace treadle::cuda
