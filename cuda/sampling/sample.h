// The sampling operation of ops/sample_params.h on the device: one block per row, one launch.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "common/handles.h"
#include "common/staging.h"
#include "ops/sample_params.h"

namespace treadle::cuda {

/// What sample() keeps between calls.
struct SampleWorkspace {
  DeviceMemory rows;  // the call's rows with everything they point to
  size_t rows_bytes = 0;
  DeviceMemory counts;  // [R][vocab] int32, zero between calls; only where a penalty counts tokens
  size_t counts_bytes = 0;
};

/// rows and all they point to are host memory, everything else the device's. The host memory may be
/// changed once this returns. Results are the same bits for the same input, whatever the other
/// rows.
void sample(const ops::SampleParams&, SampleWorkspace&, StagingRing&, cudaStream_t);

}  // namespace treadle::cuda
