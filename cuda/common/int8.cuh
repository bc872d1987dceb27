// From int8 to half precision, four at a time: a byte put below the exponent of 1024 is 1024 + byte.
#pragma once

#include <cstdint>

#include <cuda_fp16.h>

namespace treadle::cuda {

/// What biased4() adds to every value: 1024 and the 128 that makes bytes of int8 positive.
constexpr float kInt8Bias = 1152.0F;

/// Four int8 plus kInt8Bias as half: low holds the first two, high the others. Exact.
__device__ __forceinline__ void biased4(uint32_t bytes, uint32_t& low, uint32_t& high) {
  const uint32_t positive = bytes ^ 0x80808080U;
  low = __byte_perm(positive, 0x64646464U, 0x4140);
  high = __byte_perm(positive, 0x64646464U, 0x4342);
}

__device__ __forceinline__ uint32_t without_bias(uint32_t biased) {
  uint32_t r;
  asm("sub.rn.f16x2 %0, %1, %2;\n" : "=r"(r) : "r"(biased), "r"(0x64806480U));
  return r;
}

/// Four int8 of row a and of row b as pairs (a[i], b[i]) of half. Exact.
__device__ __forceinline__ void pair4(uint32_t a, uint32_t b, uint32_t (&pairs)[4]) {
  const uint32_t first = __byte_perm(a, b, 0x5410) ^ 0x80808080U;   // a0 a1 b0 b1
  const uint32_t second = __byte_perm(a, b, 0x7632) ^ 0x80808080U;  // a2 a3 b2 b3
  pairs[0] = without_bias(__byte_perm(first, 0x64646464U, 0x4240));
  pairs[1] = without_bias(__byte_perm(first, 0x64646464U, 0x4341));
  pairs[2] = without_bias(__byte_perm(second, 0x64646464U, 0x4240));
  pairs[3] = without_bias(__byte_perm(second, 0x64646464U, 0x4341));
}

/// 2^(field - 127), the float with these exponent bits. 0 < field < 255.
__device__ __forceinline__ float power_of_two(int field) {
  return __uint_as_float(static_cast<uint32_t>(field) << 23);
}
/// The exponent bits of x >= 0.
__device__ __forceinline__ int exponent_of(float x) {
  return static_cast<int>(__float_as_uint(x) >> 23);
}

}  // namespace treadle::cuda
