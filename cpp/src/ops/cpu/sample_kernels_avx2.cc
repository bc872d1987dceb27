#if defined(__AVX2__)

#include "ops/cpu/sample_kernels_impl.h"

namespace treadle::ops::cpu {

const SampleKernels kSampleKernelsAvx2 = {scan, next_above, weights};

}  // namespace treadle::ops::cpu

#endif
