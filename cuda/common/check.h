// Error checks of the CUDA runtime: a failing call throws treadle::Error(kDevice or kOutOfMemory).
#pragma once

#include <string>

#include <cuda_runtime_api.h>

#include "treadle/error.h"

namespace treadle::cuda {

[[noreturn]] inline void throw_cuda_error(cudaError_t status, const char* what) {
  const ErrorCode code =
      status == cudaErrorMemoryAllocation ? ErrorCode::kOutOfMemory : ErrorCode::kDevice;
  throw Error(code, std::string(what) + ": " + cudaGetErrorName(status) + " (" +
                        cudaGetErrorString(status) + ")");
}

/// Throws when `status` is an error; `what` says what was being done.
inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw_cuda_error(status, what);
}

/// Throws when the launch just made was refused (bad shape, no code for this GPU).
inline void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

}  // namespace treadle::cuda
