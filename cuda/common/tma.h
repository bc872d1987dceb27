// Tensor maps: how the copy engine of sm_90 finds a box of a matrix in global memory.
#pragma once

#include <cstdint>

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "common/check.h"
#include "ops/types.h"

namespace treadle::cuda {

/// A row-major matrix of 16-bit elements, copied in boxes of 64 columns (128 bytes) x box_rows with
/// the 128-byte swizzle: 16-byte chunk c of box row r lands at chunk c ^ (r % 8). What lies outside
/// the matrix arrives as zeros. `base` and `row_bytes` must be multiples of 16.
inline CUtensorMap make_tensor_map(const void* base, ops::DType dtype, uint64_t rows,
                                   uint64_t columns, uint64_t row_bytes, uint32_t box_rows) {
  using Encode =
      CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                   const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                   CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  static const Encode encode = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found{};
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000,
                                           cudaEnableDefault, &found),
          "find cuTensorMapEncodeTiled");
    if (found != cudaDriverEntryPointSuccess) {
      throw Error(ErrorCode::kDevice, "the driver has no cuTensorMapEncodeTiled; it is too old");
    }
    return reinterpret_cast<Encode>(entry);
  }();
  CUtensorMap map{};
  const cuuint64_t sizes[2] = {columns, rows};
  const cuuint64_t strides[1] = {row_bytes};
  const cuuint32_t box[2] = {64, box_rows};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult status =
      encode(&map,
             dtype == ops::DType::kF16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                       : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
             2, const_cast<void*>(base), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw Error(ErrorCode::kDevice, "cuTensorMapEncodeTiled failed with CUresult " +
                                        std::to_string(static_cast<int>(status)));
  }
  return map;
}

}  // namespace treadle::cuda
