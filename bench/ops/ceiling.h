// What the machine can do at most: read bandwidth and multiply-add rate.
#pragma once

#include "ops/cpu/thread_pool.h"

namespace treadle::bench {

/// Bytes per second of reading 512 MiB in order with all threads.
double read_bandwidth(ops::cpu::ThreadPool& pool);

/// Floating point operations per second of independent float32 multiply-adds in registers, in the
/// widest vectors of the processor, with all threads.
double multiply_add_rate(ops::cpu::ThreadPool& pool);

}  // namespace treadle::bench
