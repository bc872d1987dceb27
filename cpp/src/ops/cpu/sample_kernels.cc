#include "ops/cpu/sample_kernels.h"

#include "ops/cpu/isa.h"

namespace treadle::ops::cpu {

const SampleKernels& sample_kernels() {
  static const SampleKernels* const chosen = [] {
    switch (supported_isas().back()) {
      case Isa::kAvx512:
        return sample_kernels_avx512();
      case Isa::kAvx2:
        return sample_kernels_avx2();
      case Isa::kPlain:
        break;
    }
    return sample_kernels_plain();
  }();
  return *chosen;
}

}  // namespace treadle::ops::cpu
