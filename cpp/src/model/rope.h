// Rotary embedding: from the settings of a model to the frequencies that ops::RopeParams takes.
#pragma once

#include <cstdint>
#include <vector>

#include "model/model_spec.h"

namespace treadle::model {

/// What ops::RopeParams needs besides the positions. The formulas, and their order of evaluation in
/// float32, are those of Hugging Face transformers (modeling_rope_utils.py), so that the same
/// weights give the same logits.
struct RopeTable {
  std::vector<float> inv_freq;    // [rotary_dim / 2]; of dynamic NTK: up to original_len
  float attention_factor = 1.0F;  // multiplies cos and sin (yarn)
  // Dynamic NTK, else 0: base' = base * (factor * len / original_len - (factor - 1))^(d / (d - 2))
  double dynamic_base = 0.0;
  double dynamic_factor = 1.0;
  int32_t original_len = 0;
};

/// `spec` is as a reader or apply_options left it; its fields are in range.
RopeTable make_rope_table(const RopeSpec& spec);

/// The base that dynamic NTK uses at length `len`; the plain one up to original_len.
double dynamic_ntk_base(const RopeSpec& spec, int64_t len);

}  // namespace treadle::model
