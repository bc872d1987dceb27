#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns about its own intrinsics (its bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include "ops/cpu/kernel_table_inl.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)

#include "ops/cpu/simd_avx512.h"

namespace treadle::ops::cpu {

const Kernels* avx512_kernels() {
  static constexpr Kernels kTable = kernel_table<Avx512>("avx512");
  return &kTable;
}

}  // namespace treadle::ops::cpu

#else

namespace treadle::ops::cpu {

const Kernels* avx512_kernels() { return nullptr; }

}  // namespace treadle::ops::cpu

#endif
