// Facts about the current GPU, asked once.
#pragma once

#include <treadle_cuda_build.h>

#include <array>
#include <mutex>
#include <string_view>

#include <cuda_runtime_api.h>

#include "common/architectures.h"
#include "common/check.h"

namespace treadle::cuda {

/// What this build is compiled for, see code_for().
inline constexpr std::string_view kArchitectures = TREADLE_CUDA_ARCHITECTURES;

struct DeviceInfo {
  int sms = 0;
  // 10 * major + minor of what the running code is compiled for, which may be less than the GPU's:
  // kernels have a feature only if their code does.
  int capability = 0;
  int shared_bytes = 0;  // most dynamic shared memory of one block
  int l2_bytes = 0;
};

/// Of the calling thread's current device.
inline const DeviceInfo& device_info() {
  constexpr int kMaxDevices = 64;
  static std::array<std::once_flag, kMaxDevices> once;
  static std::array<DeviceInfo, kMaxDevices> infos;
  int device = 0;
  check(cudaGetDevice(&device), "get device");
  std::call_once(once.at(device), [device] {
    auto ask = [device](cudaDeviceAttr what) {
      int value = 0;
      check(cudaDeviceGetAttribute(&value, what, device), "get device attribute");
      return value;
    };
    DeviceInfo& i = infos[device];
    i.sms = ask(cudaDevAttrMultiProcessorCount);
    i.capability = code_for(kArchitectures, 10 * ask(cudaDevAttrComputeCapabilityMajor) +
                                                ask(cudaDevAttrComputeCapabilityMinor));
    i.shared_bytes = ask(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    i.l2_bytes = ask(cudaDevAttrL2CacheSize);
  });
  return infos[device];
}

}  // namespace treadle::cuda
