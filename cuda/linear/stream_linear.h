// y = x W^T for the tokens of a decode step: bound by the bandwidth that W is read with.
#pragma once

#include <cuda_runtime_api.h>

#include "common/handles.h"
#include "linear/stream_plan.h"
#include "ops/ops.h"

namespace treadle::cuda {

constexpr int32_t kStreamTokens = 128;  // of any layer; narrow ones take more

/// Memory of the device that is current at construction. One stream at a time.
class StreamWorkspace {
 public:
  StreamWorkspace();
  stream::Parts parts() const;
  static size_t bytes();

 private:
  DeviceMemory memory_;
};

/// Whether stream_linear computes `p`.
bool supports_stream_linear(const ops::LinearParams& p);
/// Whether it is also faster than cuBLASLt, as measured (docs/design/cuda-linear.md).
bool prefers_stream_linear(const ops::LinearParams& p);

/// Whether thread blocks would have nearly equal shares of a weight's tiles.
bool streams_evenly(const ops::LinearWeight&);

/// p.norm is not applied: x is normalised already. Reads W before the kernels ahead in the stream
/// have ended. A token's result depends on the layer's shape and on the GPU, not on the other
/// tokens.
void stream_linear(const ops::LinearParams& p, ops::DType act, const StreamWorkspace&,
                   cudaStream_t);

}  // namespace treadle::cuda
