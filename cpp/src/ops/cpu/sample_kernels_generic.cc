#include "ops/cpu/sample_kernels_impl.h"

namespace treadle::ops::cpu {

const SampleKernels kSampleKernelsGeneric = {scan, next_above, weights};

}  // namespace treadle::ops::cpu
