// What the driver offers, and what of it this build and a model can use.
#include <string>

#include <cuda_runtime_api.h>

#include "attention_decode/attention_decode.h"
#include "attention_decode/params.h"
#include "attention_prefill/attention_prefill.h"
#include "common/device.h"
#include "ops/cuda.h"

namespace treadle::ops {
namespace {

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

bool has_kernels(const GpuModel& model) {
  AttentionParams p{.heads = model.heads, .kv_heads = model.kv_heads, .head_dim = model.head_dim};
  p.kv.dtype = DType::kF16;
  return cuda::supports_attention_prefill(p) && cuda::supports_attention_decode(p);
}

Gpu describe(int device, const GpuModel& model) {
  cudaDeviceProp properties{};
  const cudaError_t status = cudaGetDeviceProperties(&properties, device);
  if (status != cudaSuccess) {
    (void)cudaGetLastError();
    return {"cuda:" + std::to_string(device), cudaGetErrorString(status)};
  }
  Gpu gpu{.name = properties.name};
  if (cuda::code_for(cuda::kArchitectures, 10 * properties.major + properties.minor) == 0) {
    gpu.problem = "has compute capability " + std::to_string(properties.major) + "." +
                  std::to_string(properties.minor) + ", and this build holds code for " +
                  std::string(cuda::kArchitectures) + " (TREADLE_CUDA_ARCHS chooses)";
  } else if (has_kernels(model)) {
    const int there = static_cast<int>(properties.sharedMemPerBlockOptin);
    const int needed =
        cuda::decode::least_shared_bytes(model.heads / model.kv_heads, model.head_dim);
    if (there < needed) {
      gpu.problem = "has " + std::to_string(there >> 10) +
                    " KB of shared memory for a block, and " + std::to_string(model.heads) +
                    " heads of head_dim " + std::to_string(model.head_dim) + ", " +
                    std::to_string(model.kv_heads) + " of keys and values, need " +
                    std::to_string((needed + 1023) >> 10);
    }
  }
  return gpu;
}

}  // namespace

GpuReport cuda_gpus(const GpuModel& model) {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    (void)cudaGetLastError();
    return {.problem = "no NVIDIA driver is installed"};
  }
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  (void)cudaGetLastError();  // an error would be found by the next launch
  if (status == cudaErrorInsufficientDriver) {
    return {.problem = "the NVIDIA driver serves CUDA " + version_text(driver) +
                       ", and this build needs " + version_text(CUDART_VERSION) +
                       ": install a newer driver, or build with an older toolkit",
            .hidden = true};
  }
  if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0)) {
    return {.problem =
                "there is no GPU that the NVIDIA driver offers (CUDA_VISIBLE_DEVICES hides "
                "those it does not list)"};
  }
  if (status != cudaSuccess) {
    return {.problem = std::string("the NVIDIA driver fails: ") + cudaGetErrorString(status),
            .hidden = true};
  }
  GpuReport report;
  for (int device = 0; device < count; ++device) report.gpus.push_back(describe(device, model));
  return report;
}

std::string cuda_cannot_run(const GpuModel& model) {
  if (!has_kernels(model)) {
    return "no GPU kernel for head_dim " + std::to_string(model.head_dim) + " with " +
           std::to_string(model.heads) + " heads, " + std::to_string(model.kv_heads) +
           " of keys and values (head_dim 64, 80, 96, 128 or 256, at most 16 heads to each of "
           "them)";
  }
  if (model.rotary_dim % 16 != 0) {
    return "no GPU kernel for rotary dimensions that are no multiple of 16: " +
           std::to_string(model.rotary_dim);
  }
  if (model.hidden % 8 != 0 || model.intermediate % 8 != 0) {
    return "no GPU kernel for sizes that are no multiple of 8: hidden " +
           std::to_string(model.hidden) + ", intermediate " + std::to_string(model.intermediate);
  }
  return {};
}

}  // namespace treadle::ops
