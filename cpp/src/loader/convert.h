// Element type conversion of weights, on the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "ops/types.h"

namespace treadle::loader {

/// Writes `count` elements of `type` (kF32, kF16 or kBF16) as float32. `in` need not be aligned: a
/// safetensors file may put tensors at any byte. Exact for every value, infinities and NaN
/// included.
void to_float(const std::byte* in, ops::DType type, int64_t count, float* out);

}  // namespace treadle::loader
