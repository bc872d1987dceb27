#include "ops/cpu/sample_kernels.h"

#if defined(__AVX2__)
#include "ops/cpu/sample_kernels_inl.h"

namespace treadle::ops::cpu {

const SampleKernels* sample_kernels_avx2() {
  static constexpr SampleKernels kKernels = {scan, next_above, weights};
  return &kKernels;
}

}  // namespace treadle::ops::cpu
#else
namespace treadle::ops::cpu {

const SampleKernels* sample_kernels_avx2() { return nullptr; }

}  // namespace treadle::ops::cpu
#endif
