// The sampling operation of ops/sample_params.h on the device, in one launch.
#pragma once

#include <cuda_runtime_api.h>

#include "ops/sample_params.h"

namespace treadle::cuda {

/// Launches depend on the parameters alone. Results are the same bits for the same input, whatever
/// the other rows.
void sample(const ops::SampleParams&, cudaStream_t);

}  // namespace treadle::cuda
