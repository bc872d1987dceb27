#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numbers>

namespace treadle::model {
namespace {

// float32 base^(2i/d), rounded once from double: torch's own float32 pow is within one ulp of that.
std::vector<float> position_frequencies(const RopeSpec& spec) {
  std::vector<float> out(static_cast<size_t>(spec.rotary_dim) / 2);
  for (size_t i = 0; i < out.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(spec.rotary_dim);
    out[i] = static_cast<float>(std::pow(static_cast<double>(static_cast<float>(spec.base)),
                                         static_cast<double>(exponent)));
  }
  return out;
}

std::vector<float> default_inv_freq(const RopeSpec& spec) {
  std::vector<float> out = position_frequencies(spec);
  for (float& f : out) f = 1.0F / f;
  return out;
}

std::vector<float> llama3_inv_freq(const RopeSpec& spec) {
  const auto factor = static_cast<float>(spec.factor);
  const auto low = static_cast<float>(spec.low_freq_factor);
  const auto original = static_cast<float>(spec.original_len);
  const auto low_wavelen = static_cast<float>(spec.original_len / spec.low_freq_factor);
  const auto high_wavelen = static_cast<float>(spec.original_len / spec.high_freq_factor);
  const auto band = static_cast<float>(spec.high_freq_factor - spec.low_freq_factor);
  std::vector<float> out = default_inv_freq(spec);
  for (float& f : out) {
    const float wavelen = static_cast<float>(2.0 * std::numbers::pi) / f;
    if (wavelen > low_wavelen) {
      f /= factor;
    } else if (wavelen >= high_wavelen) {
      const float smooth = (original / wavelen - low) / band;
      f = (1.0F - smooth) * f / factor + smooth * f;
    }
  }
  return out;
}

// The dimension whose frequency makes this many rotations over the original length.
double yarn_correction_dim(const RopeSpec& spec, double rotations) {
  return spec.rotary_dim * std::log(spec.original_len / (rotations * 2.0 * std::numbers::pi)) /
         (2.0 * std::log(spec.base));
}

std::vector<float> yarn_inv_freq(const RopeSpec& spec) {
  double low = yarn_correction_dim(spec, spec.beta_fast);
  double high = yarn_correction_dim(spec, spec.beta_slow);
  if (spec.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, spec.rotary_dim - 1.0);
  if (low == high) high += 0.001;  // the ramp must not divide by zero
  const auto begin = static_cast<float>(low);
  const auto width = static_cast<float>(high - low);
  const auto factor = static_cast<float>(spec.factor);
  std::vector<float> out = position_frequencies(spec);
  for (size_t i = 0; i < out.size(); ++i) {
    const float ramp = std::clamp((static_cast<float>(i) - begin) / width, 0.0F, 1.0F);
    const float keep = 1.0F - ramp;
    const float interpolated = 1.0F / (factor * out[i]);
    const float extrapolated = 1.0F / out[i];
    out[i] = interpolated * (1.0F - keep) + extrapolated * keep;
  }
  return out;
}

// arXiv:2309.00071, section 3.4; mscale and mscale_all_dim as DeepSeek introduced them.
double yarn_attention_factor(const RopeSpec& spec) {
  if (spec.attention_factor > 0.0) return spec.attention_factor;
  const auto scale = [&](double mscale) {
    return spec.factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(spec.factor) + 1.0;
  };
  if (spec.mscale != 0.0 && spec.mscale_all_dim != 0.0) {
    return scale(spec.mscale) / scale(spec.mscale_all_dim);
  }
  return scale(1.0);
}

}  // namespace

RopeTable make_rope_table(const RopeSpec& spec) {
  RopeTable table;
  switch (spec.kind) {
    case RopeKind::kDefault:
      table.inv_freq = default_inv_freq(spec);
      break;
    case RopeKind::kLinear:
      table.inv_freq = default_inv_freq(spec);
      for (float& f : table.inv_freq) f /= static_cast<float>(spec.factor);
      break;
    case RopeKind::kDynamicNtk:
      table.inv_freq = default_inv_freq(spec);
      table.dynamic_base = spec.base;
      table.dynamic_factor = spec.factor;
      table.original_len = spec.original_len;
      break;
    case RopeKind::kLlama3:
      table.inv_freq = llama3_inv_freq(spec);
      break;
    case RopeKind::kYarn:
      table.inv_freq = yarn_inv_freq(spec);
      table.attention_factor = static_cast<float>(yarn_attention_factor(spec));
      break;
  }
  return table;
}

double dynamic_ntk_base(const RopeSpec& spec, int64_t len) {
  if (spec.kind != RopeKind::kDynamicNtk || len <= spec.original_len) return spec.base;
  const double d = spec.rotary_dim;
  const double stretch =
      spec.factor * static_cast<double>(len) / spec.original_len - (spec.factor - 1.0);
  return spec.base * std::pow(stretch, d / (d - 2.0));
}

}  // namespace treadle::model
