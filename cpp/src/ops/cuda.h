// The CUDA backend as the rest of the engine knows it. Defined in cuda/, or, in a build without it,
// in engine/device.cc as a machine without GPUs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ops/ops.h"

namespace treadle::ops {

struct Gpu {
  std::string name;     // "NVIDIA H200"
  std::string problem;  // why this build cannot run on it; empty when it can
};

/// GPUs by their number in "cuda:N".
struct GpuReport {
  std::string problem;  // why there are none, when there are none
  bool hidden = false;  // there seem to be some all the same
  std::vector<Gpu> gpus;
};

/// Sizes that kernels depend on.
struct GpuModel {
  int32_t heads = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
  int32_t rotary_dim = 0;
  int32_t hidden = 0;
  int32_t intermediate = 0;
};

/// What the driver offers and what of it this build has code for, and shared memory for such a
/// model where one is named. Starts nothing on the GPUs.
GpuReport cuda_gpus(const GpuModel& model = {});

/// Why no kernel serves such a model on any GPU; empty when all do.
std::string cuda_cannot_run(const GpuModel& model);

/// File name of cuBLASLt, which cuda_ops() loads: one that the process has loaded already, one on
/// the loader's path or beside this library.
std::string cuda_library();

/// The backend on GPU `device`, with activations, weights and KV cache of `act_dtype` (kF16 or
/// kBF16; weights of another type are converted as they are loaded). Throws Error(kUnsupported)
/// when there is no such GPU, the driver or the build does not serve it, or cuBLASLt is not
/// installed. Release with ops.destroy(ops.self).
Ops cuda_ops(int32_t device, DType act_dtype = DType::kF16);

}  // namespace treadle::ops
