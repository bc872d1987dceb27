#include "ops/cpu/isa.h"

#include "ops/cpu/kernels.h"

namespace treadle::ops::cpu {

const char* isa_name(Isa isa) { return kernels_of(isa)->name; }

std::vector<Isa> supported_isas() {
  std::vector<Isa> isas = {Isa::kPlain};
#if defined(__x86_64__)
  // __builtin_cpu_supports also asks whether the system saves the wide registers. F16C is not asked
  // for: every processor with AVX2 has it.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && avx2_kernels() != nullptr) isas.push_back(Isa::kAvx2);
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      avx512_kernels() != nullptr) {
    isas.push_back(Isa::kAvx512);
  }
#endif
  return isas;
}

}  // namespace treadle::ops::cpu
