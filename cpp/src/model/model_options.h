// Engine options that change what a model computes.
#pragma once

#include <cstdint>

#include "model/model_spec.h"

namespace treadle::model {

/// Applies EngineConfig::rope_scaling_factor (0 = as the model says; else dynamic NTK of that
/// factor over max_position_embeddings, whatever scaling the model has) and use_logn_attn (-1 as
/// the model says, 0 off, 1 on beyond max_position_embeddings), as TurboMind does. Throws
/// Error(kInvalidArgument) for values out of range.
void apply_options(ModelSpec& spec, double rope_scaling_factor, int32_t use_logn_attn);

}  // namespace treadle::model
