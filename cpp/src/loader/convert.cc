#include "loader/convert.h"

#include <bit>
#include <cstring>

namespace treadle::loader {
namespace {

template <typename T>
T load(const std::byte* in, int64_t index) {
  T value;
  std::memcpy(&value, in + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

// IEEE 754 binary16 to binary32.
float half_to_float(uint16_t half) {
  const uint32_t sign = (half & 0x8000U) << 16U;
  const uint32_t exponent = (half >> 10U) & 0x1FU;
  const uint32_t fraction = half & 0x3FFU;
  if (exponent == 0) {  // zero or subnormal: fraction * 2^-24 is exact
    const float value = static_cast<float>(fraction) * 0x1p-24F;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
  }
  const uint32_t wide = exponent == 0x1FU ? 0xFFU : exponent + (127 - 15);
  return std::bit_cast<float>(sign | wide << 23U | fraction << 13U);
}

}  // namespace

void to_float(const std::byte* in, ops::DType type, int64_t count, float* out) {
  switch (type) {
    case ops::DType::kF16:
      for (int64_t i = 0; i < count; ++i) out[i] = half_to_float(load<uint16_t>(in, i));
      break;
    case ops::DType::kBF16:
      for (int64_t i = 0; i < count; ++i) {
        out[i] = std::bit_cast<float>(uint32_t{load<uint16_t>(in, i)} << 16U);
      }
      break;
    default:
      if (count > 0) std::memcpy(out, in, static_cast<size_t>(count) * sizeof(float));
      break;
  }
}

}  // namespace treadle::loader
