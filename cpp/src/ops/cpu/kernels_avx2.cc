#include "ops/cpu/kernel_table_inl.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include "ops/cpu/simd_avx2.h"

namespace treadle::ops::cpu {

const Kernels* avx2_kernels() {
  static constexpr Kernels kTable = kernel_table<Avx2>("avx2");
  return &kTable;
}

}  // namespace treadle::ops::cpu

#else

namespace treadle::ops::cpu {

const Kernels* avx2_kernels() { return nullptr; }

}  // namespace treadle::ops::cpu

#endif
