// The CUDA backend of the seam: cuda_ops() of ops/cuda.h, and what its tests need besides.
#pragma once

#include <cstdint>

#include "ops/cuda.h"

namespace treadle::ops {

/// GPUs that the driver offers; 0 when there is no usable driver. Never throws.
int32_t cuda_device_count() noexcept;

}  // namespace treadle::ops
