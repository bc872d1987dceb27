// Facts about the current GPU, asked once.
#pragma once

#include <array>
#include <mutex>

#include <cuda_runtime_api.h>

#include "common/check.h"

namespace treadle::cuda {

struct DeviceInfo {
  int sms = 0;
  int capability = 0;    // 10 * major + minor
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
    i.capability =
        10 * ask(cudaDevAttrComputeCapabilityMajor) + ask(cudaDevAttrComputeCapabilityMinor);
    i.shared_bytes = ask(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    i.l2_bytes = ask(cudaDevAttrL2CacheSize);
  });
  return infos[device];
}

}  // namespace treadle::cuda
