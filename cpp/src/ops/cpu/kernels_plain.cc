#include "ops/cpu/kernel_table_inl.h"
#include "ops/cpu/simd_plain.h"

namespace treadle::ops::cpu {

const Kernels* plain_kernels() {
  static constexpr Kernels kTable = kernel_table<Plain>("plain");
  return &kTable;
}

}  // namespace treadle::ops::cpu
