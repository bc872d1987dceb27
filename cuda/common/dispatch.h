// From a run-time type to a compile-time one, and from sizes to a launch.
#pragma once

#include <string>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/device.h"
#include "common/launch.h"
#include "ops/types.h"
#include "treadle/error.h"

namespace treadle::cuda {

template <class T>
struct TypeTag {
  using type = T;
};

[[noreturn]] inline void throw_unsupported(const std::string& what) {
  throw Error(ErrorCode::kUnsupported, "CUDA: " + what);
}

/// Calls fn(TypeTag<__half>) or fn(TypeTag<__nv_bfloat16>).
template <class Fn>
void with_half_type(ops::DType dtype, Fn&& fn) {
  if (dtype == ops::DType::kF16) return fn(TypeTag<__half>{});
  if (dtype == ops::DType::kBF16) return fn(TypeTag<__nv_bfloat16>{});
  throw_unsupported(std::string("activations of type ") + ops::dtype_name(dtype) +
                    "; use float16 or bfloat16");
}

/// The kernel has a grid_dependency_wait(), so it may be launched before its predecessor has
/// ended where the GPU can do that.
inline LaunchShape dependent_launch(dim3 grid, dim3 block, cudaStream_t stream,
                                    size_t shared_bytes = 0) {
  return {.grid = grid,
          .block = block,
          .shared_bytes = shared_bytes,
          .stream = stream,
          .dependent = device_info().capability >= 90};
}

/// 16-byte accesses need rows of whole vectors.
inline void check_vector_width(const char* what, int64_t size) {
  if (size % 8 != 0) {
    throw_unsupported(std::string(what) + " = " + std::to_string(size) +
                      " must be a multiple of 8");
  }
}

}  // namespace treadle::cuda
