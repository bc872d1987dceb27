// The sampling operation of ops/sample_params.h on the device: one block per row, one launch.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "common/handles.h"
#include "ops/sample_params.h"

namespace treadle::cuda {

/// What sample() keeps between calls.
struct SampleWorkspace {
  DeviceMemory counts;  // [R][vocab] int32, zero between calls; only where a penalty counts tokens
  size_t counts_bytes = 0;
};

/// One launch, which depends on the parameters and the workspace alone. Results are the same bits
/// for the same input, whatever the other rows.
void sample(const ops::SampleParams&, SampleWorkspace&, cudaStream_t);

}  // namespace treadle::cuda
