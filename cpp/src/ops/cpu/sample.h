// The sampling operation on the CPU.
#pragma once

#include "ops/sample_params.h"

namespace treadle::ops::cpu {

class ThreadPool;

/// Chooses a token for every row; see ops/sample_params.h for the order of the steps. Rows are
/// spread over the pool, each computed by one thread in an order of its own, so that a row's result
/// is bit-identical whatever surrounds it.
void sample(ThreadPool& pool, const SampleParams& params);

}  // namespace treadle::ops::cpu
