// How many weights a model has.
#pragma once

#include <cstdint>

#include "model/model_spec.h"

namespace treadle::model {

/// Weights that the spec asks for; what a checkpoint must hold.
int64_t num_parameters(const ModelSpec& spec);

}  // namespace treadle::model
