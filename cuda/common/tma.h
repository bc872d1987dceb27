// Tensor maps: how the copy engine of sm_90 finds a box of a matrix in global memory.
#pragma once

#include <cstdint>

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "common/check.h"
#include "ops/types.h"

namespace treadle::cuda {

namespace detail {

using EncodeTensorMap = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*,
                                     const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                                     const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                                     CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

inline CUtensorMap encode_tensor_map(CUtensorMapDataType type, cuuint32_t rank, const void* base,
                                     const cuuint64_t* sizes, const cuuint64_t* strides,
                                     const cuuint32_t* box, CUtensorMapSwizzle swizzle,
                                     CUtensorMapL2promotion promotion) {
  static const EncodeTensorMap encode = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found{};
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000,
                                           cudaEnableDefault, &found),
          "find cuTensorMapEncodeTiled");
    if (found != cudaDriverEntryPointSuccess) {
      throw Error(ErrorCode::kDevice, "the driver has no cuTensorMapEncodeTiled; it is too old");
    }
    return reinterpret_cast<EncodeTensorMap>(entry);
  }();
  constexpr cuuint32_t kSteps[] = {1, 1, 1, 1, 1};
  CUtensorMap map{};
  const CUresult status =
      encode(&map, type, rank, const_cast<void*>(base), sizes, strides, box, kSteps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw Error(ErrorCode::kDevice, "cuTensorMapEncodeTiled failed with CUresult " +
                                        std::to_string(static_cast<int>(status)));
  }
  return map;
}

}  // namespace detail

/// The map of a tensor of 16-bit elements, innermost dimension first, copied in boxes of 64
/// elements (128 bytes) of that dimension with the 128-byte swizzle: 16-byte chunk c of box row r
/// lands at chunk c ^ (r % 8). What lies outside the tensor arrives as zeros. `base` and `strides`
/// (in bytes, of all dimensions but the first) must be multiples of 16. `promotion`: how much
/// memory L2 asks for at least.
template <int kRank>
CUtensorMap make_tensor_map(const void* base, ops::DType dtype, const cuuint64_t (&sizes)[kRank],
                            const cuuint64_t (&strides)[kRank - 1], const cuuint32_t (&box)[kRank],
                            CUtensorMapL2promotion promotion) {
  return detail::encode_tensor_map(dtype == ops::DType::kF16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                             : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                                   kRank, base, sizes, strides, box, CU_TENSOR_MAP_SWIZZLE_128B,
                                   promotion);
}

/// A row-major matrix of 32-bit words, copied as it is in boxes of box_rows x box_columns; rows are
/// of a multiple of four words.
inline CUtensorMap make_word_map(const void* base, uint64_t rows, uint64_t columns,
                                 uint32_t box_rows, uint32_t box_columns) {
  const cuuint64_t sizes[] = {columns, rows};
  const cuuint64_t strides[] = {columns * 4};
  const cuuint32_t box[] = {box_columns, box_rows};
  return detail::encode_tensor_map(CU_TENSOR_MAP_DATA_TYPE_UINT32, 2, base, sizes, strides, box,
                                   CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_L2_128B);
}

/// A row-major matrix in boxes of 64 columns x box_rows.
inline CUtensorMap make_tensor_map(
    const void* base, ops::DType dtype, uint64_t rows, uint64_t columns, uint64_t row_bytes,
    uint32_t box_rows, CUtensorMapL2promotion promotion = CU_TENSOR_MAP_L2_PROMOTION_L2_256B) {
  return make_tensor_map<2>(base, dtype, {columns, rows}, {row_bytes}, {64, box_rows}, promotion);
}

}  // namespace treadle::cuda
