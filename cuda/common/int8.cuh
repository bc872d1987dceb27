// From int8 to 16 bits: a byte put below the exponent of 1024 is the half 1024 + byte, and likewise
// for float.
#pragma once

#include <cstdint>

#include <cuda_fp16.h>

#include "common/ptx.cuh"
#include "ops/types.h"

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

/// Eight int8 of one token as T: q * scale + zero. Off by at most 0.002 * scale before it is
/// rounded to T.
template <class T>
__device__ __forceinline__ uint4 restore8(uint2 bytes, ops::KvScale s) {
  const float zero = fmaf(-(32768.0F + 128.0F), s.scale, s.zero);
  uint32_t r[4];
#pragma unroll
  for (int w = 0; w < 2; ++w) {
    const uint32_t positive = (w == 0 ? bytes.x : bytes.y) ^ 0x80808080U;
    float f[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // the float 32768 + byte
      f[i] = fmaf(__uint_as_float(__byte_perm(positive, 0x47000000U, 0x7404 + (i << 4))), s.scale,
                  zero);
    }
    r[2 * w] = pack2<T>(f[0], f[1]);
    r[2 * w + 1] = pack2<T>(f[2], f[3]);
  }
  return make_uint4(r[0], r[1], r[2], r[3]);
}

__device__ __forceinline__ void store_shared(uint32_t at, uint4 x) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};\n" ::"r"(at), "r"(x.x), "r"(x.y), "r"(x.z),
               "r"(x.w)
               : "memory");
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
