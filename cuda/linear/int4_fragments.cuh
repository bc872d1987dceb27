// Packed 4-bit weights as A fragments of tensor-core products: numbers times scales, in registers.
#pragma once

#include <type_traits>

#include "common/ptx.cuh"
#include "linear/int4_dequant.cuh"

namespace treadle::cuda::int4 {

/// Weights of rows r and r + 8 of a tile in one group.
template <class T>
struct GroupScales {
  Zeros<T> zeros;
  uint32_t scale[2];  // of both rows, twice in a register, rounded to T

  GroupScales() = default;
  __device__ __forceinline__ explicit GroupScales(uint2 words) : zeros(words) {
    const float low = __uint_as_float(words.x & 0xffffff00U);
    const float high = __uint_as_float(words.y & 0xffffff00U);
    scale[0] = pack2<T>(low, low);
    scale[1] = pack2<T>(high, high);
  }

  /// (q - zero) * scale, rounded once to T, of 16 columns.
  __device__ __forceinline__ void dequantise(uint32_t q, uint32_t (&a)[4]) const {
    zeros.unpack(q, a);
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = multiply(a[i], scale[i % 2]);
  }

 private:
  static __device__ __forceinline__ uint32_t multiply(uint32_t a, uint32_t b) {
    uint32_t r;
    if constexpr (std::is_same_v<T, __half>) {
      asm("mul.rn.f16x2 %0, %1, %2;\n" : "=r"(r) : "r"(a), "r"(b));
    } else {
      // mul.bf16x2 is sm_90's alone.
      asm("fma.rn.bf16x2 %0, %1, %2, %3;\n" : "=r"(r) : "r"(a), "r"(b), "r"(0x80008000U));  // + -0
    }
    return r;
  }
};

}  // namespace treadle::cuda::int4
