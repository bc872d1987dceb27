// From packed 4-bit numbers (linear/int4_layout.h) to the A fragment of a tensor-core product.
//
// A nibble in the mantissa of 1024 (float16) or 128 (bfloat16) is that number plus the nibble, so a
// mask makes two halves of a register floats and one addition takes off 1024 + zero. In the upper
// nibble of a byte float16 finds 1024 + 16 q, which a multiplication by 1/16 brings to 64 + q;
// bfloat16 has no bits for that and shifts. All of it is exact: the results are q - zero.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "linear/int4_layout.h"

namespace treadle::cuda::int4 {

/// (a & mask) | bits in one instruction.
template <uint32_t kMask, uint32_t kBits>
__device__ __forceinline__ uint32_t mask_or(uint32_t a) {
  uint32_t r;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;\n" : "=r"(r) : "r"(a), "n"(kMask), "n"(kBits));
  return r;
}

/// What turns the nibbles of two rows of a tile, r and r + 8, into q - zero.
template <class T>
struct Zeros;

template <>
struct Zeros<__half> {
  uint32_t low;   // -(1024 + zero) of row r, twice
  uint32_t high;  // -(64 + zero) of row r + 8, twice

  Zeros() = default;
  __device__ __forceinline__ explicit Zeros(uint2 words) {
    low = __byte_perm(words.x, 0xe4U, 0x4040);
    high = add(__byte_perm(words.y, 0xe4U, 0x4040), 0x63806380U);  // + 960
  }

  __device__ __forceinline__ void unpack(uint32_t q, uint32_t (&a)[4]) const {
    a[0] = add(mask_or<0x000f000fU, 0x64006400U>(q), low);
    a[1] = fma(mask_or<0x00f000f0U, 0x64006400U>(q), high);
    q >>= 8;
    a[2] = add(mask_or<0x000f000fU, 0x64006400U>(q), low);
    a[3] = fma(mask_or<0x00f000f0U, 0x64006400U>(q), high);
  }

 private:
  static __device__ __forceinline__ uint32_t add(uint32_t a, uint32_t b) {
    uint32_t r;
    asm("add.f16x2 %0, %1, %2;\n" : "=r"(r) : "r"(a), "r"(b));
    return r;
  }
  /// a / 16 + b
  static __device__ __forceinline__ uint32_t fma(uint32_t a, uint32_t b) {
    uint32_t r;
    asm("fma.rn.f16x2 %0, %1, %2, %3;\n" : "=r"(r) : "r"(a), "r"(0x2c002c00U), "r"(b));
    return r;
  }
};

template <>
struct Zeros<__nv_bfloat16> {
  uint32_t low;   // -(128 + zero) of row r, twice
  uint32_t high;  // of row r + 8

  Zeros() = default;
  __device__ __forceinline__ explicit Zeros(uint2 words) {
    low = __byte_perm(words.x, 0xc3U, 0x4040);
    high = __byte_perm(words.y, 0xc3U, 0x4040);
  }

  __device__ __forceinline__ void unpack(uint32_t q, uint32_t (&a)[4]) const {
    a[0] = add(mask_or<0x000f000fU, 0x43004300U>(q), low);
    a[1] = add(mask_or<0x000f000fU, 0x43004300U>(q >> 4), high);
    a[2] = add(mask_or<0x000f000fU, 0x43004300U>(q >> 8), low);
    a[3] = add(mask_or<0x000f000fU, 0x43004300U>(q >> 12), high);
  }

 private:
  static __device__ __forceinline__ uint32_t add(uint32_t a, uint32_t b) {
    uint32_t r;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;\n" : "=r"(r) : "r"(a), "r"(0x3f803f80U), "r"(b));
    return r;
  }
};

}  // namespace treadle::cuda::int4
