#include "ops/cpu/kernels.h"

namespace treadle::ops::cpu {

const Kernels* kernels_of(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return avx512_kernels();
    case Isa::kAvx2:
      return avx2_kernels();
    case Isa::kPlain:
      break;
  }
  return plain_kernels();
}

}  // namespace treadle::ops::cpu
