// The rotary settings of a config.json, in both spellings Hugging Face has used.
#pragma once

#include "loader/fields.h"
#include "model/model_spec.h"

namespace treadle::loader {

/// Fills spec.rope from `rope_theta` + `rope_scaling` or from `rope_parameters`. Needs head_dim and
/// max_position_embeddings of `spec`. Throws Error: kUnsupported for a type or field that is not
/// implemented, kInvalidModel for values out of range.
void read_rope(const Fields& config, model::ModelSpec& spec);

/// The same from InternLM's own spelling, `rotary`: {"type": "origin" or "dynamic", "base",
/// "scaling_factor"}. When the field is absent: dynamic of factor 1, as InternLM's configuration
/// class has it, unless one of Hugging Face's fields is there.
void read_internlm_rope(const Fields& config, model::ModelSpec& spec);

}  // namespace treadle::loader
