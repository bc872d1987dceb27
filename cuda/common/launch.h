// Kernel launches with programmatic dependent launch: the grid may start while the one before it in
// the stream drains. The kernel must call grid_dependency_wait() (common/ptx.cuh) before it touches
// memory that an earlier kernel writes or reads.
#pragma once

#include <utility>

#include <cuda_runtime.h>

#include "common/check.h"

namespace treadle::cuda {

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  cudaStream_t stream = nullptr;
  bool dependent = false;  // needs sm_90; ignored by the driver's plain launch path when false
  unsigned cluster = 1;    // thread blocks of a cluster (sm_90); divides grid.x
};

template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), const LaunchShape& shape, A&&... args) {
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = shape.stream;
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (shape.dependent) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {shape.cluster, 1, 1};
  }
  check(cudaLaunchKernelEx(&config, kernel, static_cast<P>(std::forward<A>(args))...), name);
}

}  // namespace treadle::cuda
