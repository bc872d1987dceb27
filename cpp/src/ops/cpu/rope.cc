// Angles of rotary embedding (arXiv:2104.09864), once for all layers of a step.
#include <algorithm>
#include <cmath>

#include "ops/cpu/backend.h"

namespace treadle::ops::cpu {
namespace {

/// inv_freq of dynamic NTK scaling for a sequence of `length` tokens, as transformers computes it:
/// base' = base * (factor * length / original - (factor - 1))^(d / (d - 2)).
double dynamic_base(const RopeParams& p, int32_t length) {
  const double stretch = p.dynamic_factor * length / p.original_len - (p.dynamic_factor - 1.0);
  const double d = p.rotary_dim;
  return p.dynamic_base * std::pow(stretch, d / (d - 2.0));
}

}  // namespace

void rope(Backend& b, const RopeParams& p) {
  const int64_t half = p.rotary_dim / 2;
  b.pool.parallel_ranges(p.num_tokens, 8, [&](int64_t begin, int64_t end, int /*thread*/) {
    for (int64_t t = begin; t < end; ++t) {
      const bool stretched = p.dynamic_base > 0.0 && p.rope_len != nullptr && p.rotary_dim > 2 &&
                             p.rope_len[t] > p.original_len;
      const double base = stretched ? dynamic_base(p, p.rope_len[t]) : 0.0;
      const float position = static_cast<float>(p.positions[t]);
      float* out = p.cos_sin + t * half * 2;
      for (int64_t i = 0; i < half; ++i) {
        float inv_freq = 0.0F;
        if (stretched) {
          const double exponent = 2.0 * static_cast<double>(i) / p.rotary_dim;
          inv_freq = static_cast<float>(1.0 / std::pow(base, exponent));
        } else {
          inv_freq = p.inv_freq[i];
        }
        // The product is rounded to float because models are trained with such angles; the cosine
        // of the rounded angle is then exact to float.
        const double angle = static_cast<double>(position * inv_freq);
        out[2 * i] = static_cast<float>(std::cos(angle)) * p.attention_factor;
        out[2 * i + 1] = static_cast<float>(std::sin(angle)) * p.attention_factor;
      }
    }
  });
}

}  // namespace treadle::ops::cpu
