#if defined(__AVX512F__)

#include "ops/cpu/sample_kernels_impl.h"

namespace treadle::ops::cpu {

const SampleKernels kSampleKernelsAvx512 = {scan, next_above, weights};

}  // namespace treadle::ops::cpu

#endif
