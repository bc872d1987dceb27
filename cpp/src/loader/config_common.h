// What the configurations of all families have in common.
#pragma once

#include <cstdint>

#include "loader/fields.h"
#include "model/model_spec.h"

namespace treadle::loader {

/// Values a family's configuration class takes for a field that config.json lacks.
struct FamilyDefaults {
  int32_t max_position_embeddings = 2048;
  int32_t num_kv_heads = 0;  // 0 = num_attention_heads
  int32_t head_dim = 0;      // 0 = hidden_size / num_attention_heads
  double norm_eps = 1e-6;
};

/// Refuses fields that change results and are not implemented: mixtures of experts,
/// other activations, soft caps and multipliers of other families. Throws Error(kUnsupported).
void refuse_unsupported(const Fields& config);

/// Sizes, norm, dtype, tied embeddings, token ids and logn attention. Throws Error(kInvalidModel).
void read_common(const Fields& config, const FamilyDefaults& defaults, model::ModelSpec& spec);

/// Adds the token ids that end a text, of config.json or generation_config.json.
void read_eos(const Fields& fields, model::ModelSpec& spec);

/// Fills sliding_window and layer_uses_window: `window` tokens (0 = none) in layers
/// `first_layer`.., or as `layer_types` says where the configuration has it.
void read_window(const Fields& config, int32_t window, int32_t first_layer, model::ModelSpec& spec);

}  // namespace treadle::loader
