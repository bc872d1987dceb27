#include "ops/types.h"

namespace treadle::ops {

const char* dtype_name(DType t) noexcept {
  switch (t) {
    case DType::kF32:
      return "float32";
    case DType::kF16:
      return "float16";
    case DType::kBF16:
      return "bfloat16";
    case DType::kI32:
      return "int32";
    case DType::kI8:
      return "int8";
    case DType::kU8:
      return "uint8";
  }
  return "unknown";
}

}  // namespace treadle::ops
