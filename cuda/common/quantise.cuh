// From a head's K or V to int8 and a KvScale, equal to the bit to what the CPU makes.
#pragma once

#include <cstdint>

#include "ops/types.h"

namespace treadle::cuda {

/// What a head's values are quantised with, as on the CPU (ops/cpu/quantise_inl.h): the least and
/// the largest become -127.5 and 127.5, and a head with a value that is not finite not-a-number.
/// By all lanes of a head; those without values say so.
template <int kLanes>
__device__ __forceinline__ ops::KvScale kv_scale(const float (&x)[8], bool here) {
  float least = here ? x[0] : INFINITY;
  float largest = here ? x[0] : -INFINITY;
  int finite = 1;
  if (here) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      finite &= isfinite(x[j]) ? 1 : 0;
      least = fminf(least, x[j]);
      largest = fmaxf(largest, x[j]);
    }
  }
#pragma unroll
  for (int other = kLanes / 2; other > 0; other /= 2) {
    least = fminf(least, __shfl_xor_sync(0xffffffffU, least, other, kLanes));
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffU, largest, other, kLanes));
    finite &= __shfl_xor_sync(0xffffffffU, finite, other, kLanes);
  }
  if (finite == 0) return {0.0F, NAN};
  // Halves first: the difference of any two finite halves is finite.
  return {(0.5F * largest - 0.5F * least) / 127.5F, 0.5F * least + 0.5F * largest};
}

__device__ __forceinline__ uint32_t quantise4(const float* x, ops::KvScale s) {
  const float scale = s.scale > 0.0F ? s.scale : 1.0F;
  uint32_t word = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    // The bound comes second: it takes the place of what is not a number.
    const float q = fminf(fmaxf((x[j] - s.zero) / scale, -128.0F), 127.0F);
    word |= (static_cast<uint32_t>(__float2int_rn(q)) & 0xffU) << (8 * j);
  }
  return word;
}

}  // namespace treadle::cuda
