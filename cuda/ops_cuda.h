// The CUDA backend of the seam.
#pragma once

#include <cstdint>

#include "ops/ops.h"

namespace treadle::ops {

/// GPUs that the driver offers; 0 when there is no usable driver. Never throws.
int32_t cuda_device_count() noexcept;

/// The backend on GPU `device`, with activations, weights and KV cache of `act_dtype` (kF16 or
/// kBF16; weights of another type are converted as they are loaded). Throws Error(kUnsupported)
/// when there is no such GPU, the driver or the build does not serve it, or cuBLASLt is not
/// installed. Release with ops.destroy(ops.self).
Ops cuda_ops(int32_t device, DType act_dtype = DType::kF16);

}  // namespace treadle::ops
