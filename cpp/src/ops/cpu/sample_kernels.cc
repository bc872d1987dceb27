#include "ops/cpu/sample_kernels.h"

namespace treadle::ops::cpu {

const SampleKernels& sample_kernels() {
#if defined(__x86_64__) && defined(__GNUC__)
  static const SampleKernels& chosen = []() -> const SampleKernels& {
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
      return kSampleKernelsAvx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kSampleKernelsAvx2;
    return kSampleKernelsGeneric;
  }();
  return chosen;
#else
  return kSampleKernelsGeneric;
#endif
}

}  // namespace treadle::ops::cpu
