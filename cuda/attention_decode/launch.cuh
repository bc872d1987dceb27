// Launch of the decode kernel for one kind of pool.
#pragma once

#include "attention_decode/kernel.cuh"
#include "attention_decode/launches.h"
#include "common/device.h"
#include "common/launch.h"

namespace treadle::cuda::decode {

template <class Keys>
void run(const Params& params, const LaunchPlan& plan, cudaStream_t stream) {
  auto* kernel = attention_decode_kernel<Keys>;
  check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, plan.shared_bytes),
      "attention_decode: shared memory");
  launch("attention_decode", kernel,
         {dim3(plan.grid), dim3(kThreads), size_t(plan.shared_bytes), stream,
          device_info().capability >= 90},
         params);
}

template <template <class, int> class Keys, class T>
void dispatch(int head_dim, const Params& params, const LaunchPlan& plan, cudaStream_t stream) {
  switch (head_dim) {
    case 64:
      return run<Keys<T, 64>>(params, plan, stream);
    case 80:
      return run<Keys<T, 80>>(params, plan, stream);
    case 96:
      return run<Keys<T, 96>>(params, plan, stream);
    case 128:
      return run<Keys<T, 128>>(params, plan, stream);
    default:
      return run<Keys<T, 256>>(params, plan, stream);
  }
}

template <template <class, int> class Keys>
void dispatch(ops::DType act, int head_dim, const Params& params, const LaunchPlan& plan,
              cudaStream_t stream) {
  if (act == ops::DType::kF16) {
    dispatch<Keys, __half>(head_dim, params, plan, stream);
  } else {
    dispatch<Keys, __nv_bfloat16>(head_dim, params, plan, stream);
  }
}

}  // namespace treadle::cuda::decode
