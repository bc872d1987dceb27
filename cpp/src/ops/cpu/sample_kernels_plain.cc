#include "ops/cpu/sample_kernels_inl.h"

namespace treadle::ops::cpu {

const SampleKernels* sample_kernels_plain() {
  static constexpr SampleKernels kKernels = {scan, next_above, weights};
  return &kKernels;
}

}  // namespace treadle::ops::cpu
