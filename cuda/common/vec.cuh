// Eight activations at a time: one 16-byte access of fp16 or bf16, two of float.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace treadle::cuda {

template <class T>
__device__ __forceinline__ float to_float(T x);
template <>
__device__ __forceinline__ float to_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ float to_float<__half>(__half x) {
  return __half2float(x);
}
template <>
__device__ __forceinline__ float to_float<__nv_bfloat16>(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

template <class T>
struct alignas(16) Vec8 {
  T v[8];
};

/// The two values of a register.
template <class T>
__device__ __forceinline__ float2 unpack2(uint32_t pair);
template <>
__device__ __forceinline__ float2 unpack2<__half>(uint32_t pair) {
  return __half22float2(*reinterpret_cast<const __half2*>(&pair));
}
template <>
__device__ __forceinline__ float2 unpack2<__nv_bfloat16>(uint32_t pair) {
  return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000U));
}

/// `from` is aligned to 16 bytes.
template <class T>
__device__ __forceinline__ void load8(const T* from, float (&x)[8]) {
  const Vec8<T> vec = *reinterpret_cast<const Vec8<T>*>(from);
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = to_float(vec.v[i]);
}

template <class T>
__device__ __forceinline__ void store8(T* to, const float (&x)[8]) {
  Vec8<T> vec;
#pragma unroll
  for (int i = 0; i < 8; ++i) vec.v[i] = from_float<T>(x[i]);
  *reinterpret_cast<Vec8<T>*>(to) = vec;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffU, x, lane);
  return x;
}

/// x / (1 + e^-x), to a few ulp of float.
__device__ __forceinline__ float silu(float x) { return __fdividef(x, 1.0F + __expf(-x)); }

}  // namespace treadle::cuda
