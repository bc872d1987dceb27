// Host conversion of weights between float32, float16 and bfloat16, rounding to nearest even.
#pragma once

#include <cstddef>

#include "ops/types.h"

namespace treadle::cuda {

/// A copy when the types are the same. Throws Error(kUnsupported) for other types.
void convert(ops::DType from, const void* source, ops::DType to, void* target, size_t count);

}  // namespace treadle::cuda
