// Attention as its definition reads, for tests of what surrounds the real kernels.
#pragma once

#include "ops/ops.h"

namespace treadle::cuda::testing {

/// Fits the table's entry; uses the stream that is given, or waits for all others. `self` is
/// unused.
void reference_attention(void* self, const ops::AttentionParams& p, ops::Stream stream);

}  // namespace treadle::cuda::testing
