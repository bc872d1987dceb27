// The 16-bit element types, and the conversion of elements one at a time.
//
// The functions are static because files built for different instruction sets include them: a
// shared inline function could be linked from the wrong one.
#pragma once

#include <bit>
#include <cstdint>

namespace treadle::ops::cpu {

struct F16 {
  uint16_t bits;
};
struct BF16 {
  uint16_t bits;
};

static inline float to_float(float x) { return x; }

static inline float to_float(int8_t x) { return static_cast<float>(x); }

static inline float to_float(BF16 x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }

static inline float to_float(F16 x) {
  const uint32_t sign = (uint32_t{x.bits} & 0x8000U) << 16;
  const uint32_t rest = uint32_t{x.bits} & 0x7FFFU;
  if (rest >= 0x7C00U) return std::bit_cast<float>(sign | 0x7F800000U | (rest & 0x3FFU) << 13);
  // The exponent's bias changes from 15 to 127 by an exact product, which handles subnormals too.
  const float magnitude = std::bit_cast<float>(rest << 13) * 0x1p112F;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
}

static inline void from_float(float x, float* out) { *out = x; }

/// Rounds to nearest, ties to even.
static inline void from_float(float x, BF16* out) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) {
    out->bits = static_cast<uint16_t>((bits | 0x00400000U) >> 16);
  } else {
    out->bits = static_cast<uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
  }
}

/// Rounds to nearest, ties to even.
static inline void from_float(float x, F16* out) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000U;
  const uint32_t magnitude = bits & 0x7FFFFFFFU;
  uint32_t half = 0;
  if (magnitude > 0x7F800000U) {
    half = 0x7E00U | ((magnitude >> 13) & 0x3FFU);
  } else if (magnitude >= 0x477FF000U) {  // from 65520 on everything rounds to infinity
    half = 0x7C00U;
  } else if (magnitude < 0x38800000U) {
    // Subnormal: adding 1/2 aligns the last bit of the result with the last bit of the float.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5F;
    half = std::bit_cast<uint32_t>(shifted) - 0x3F000000U;
  } else {
    half = (magnitude - 0x38000000U + 0xFFFU + ((magnitude >> 13) & 1U)) >> 13;
  }
  out->bits = static_cast<uint16_t>(sign | half);
}

}  // namespace treadle::ops::cpu
