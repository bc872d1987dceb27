// Reads quantization_config.
#pragma once

#include "loader/fields.h"
#include "model/quant_spec.h"

namespace treadle::loader {

/// What config.json says of quantised linear layers. Which layers they are the checkpoint tells.
/// Throws Error(kUnsupported) for anything but 4-bit weights of AWQ, GPTQ and compressed-tensors.
model::QuantSpec read_quantization(const Fields& config);

}  // namespace treadle::loader
