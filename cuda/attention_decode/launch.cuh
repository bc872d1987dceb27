// Launch of the decode kernel for one kind of pool.
#pragma once

#include "attention_decode/kernel.cuh"
#include "attention_decode/launches.h"
#include "common/device.h"
#include "common/launch.h"

namespace treadle::cuda::decode {

template <class Keys, bool kMakes>
void run(const Params& params, const LaunchPlan& plan, cudaStream_t stream) {
  auto* kernel = attention_decode_kernel<Keys, kMakes>;
  check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, plan.shared_bytes),
      "attention_decode: shared memory");
  launch("attention_decode", kernel,
         {dim3(plan.grid), dim3(kThreads), size_t(plan.shared_bytes), stream,
          device_info().capability >= 90},
         params);
}

/// launch(DimTag<head_dim>{}) for the sizes there are.
template <int kDim>
struct DimTag {
  static constexpr int value = kDim;
};
template <class Launch>
void with_head_dim(int head_dim, const Launch& launch) {
  switch (head_dim) {
    case 64:
      return launch(DimTag<64>{});
    case 80:
      return launch(DimTag<80>{});
    case 96:
      return launch(DimTag<96>{});
    case 128:
      return launch(DimTag<128>{});
    default:
      return launch(DimTag<256>{});
  }
}

}  // namespace treadle::cuda::decode
