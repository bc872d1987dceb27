// Launch of the mma.sync kernel for one element type.
#pragma once

#include "attention_prefill/launches.h"
#include "attention_prefill/mma_kernel.cuh"
#include "common/device.h"
#include "common/launch.h"

namespace treadle::cuda::prefill {

template <class T, int kDim, bool kInt8>
void run_mma(const ops::AttentionParams& p, const Params& params, cudaStream_t stream) {
  using L = MmaLayout<kDim>;
  const size_t shared = L::kStarts + 4 * (size_t(params.num_sequences) + 1);
  auto* kernel = attention_prefill_mma_kernel<T, kDim, kInt8>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared)),
        "attention_prefill_mma: shared memory");
  // The lengths are on the device: as many tiles as these tokens can make, the rest end at once.
  const int tiles = (p.batch.num_tokens - p.batch.num_decode) / L::kRows + params.num_sequences;
  launch("attention_prefill_mma", kernel,
         {dim3(p.heads, tiles), dim3(kMmaThreads), shared, stream, device_info().capability >= 90},
         params);
}

template <class T, bool kInt8>
void dispatch_mma(const ops::AttentionParams& p, const Params& params, cudaStream_t stream) {
  switch (p.head_dim) {
    case 64:
      return run_mma<T, 64, kInt8>(p, params, stream);
    case 80:
      return run_mma<T, 80, kInt8>(p, params, stream);
    case 96:
      return run_mma<T, 96, kInt8>(p, params, stream);
    case 128:
      return run_mma<T, 128, kInt8>(p, params, stream);
    default:
      return run_mma<T, 256, kInt8>(p, params, stream);
  }
}

template <class T>
void dispatch_mma(const ops::AttentionParams& p, const Params& params, cudaStream_t stream) {
  if (p.kv.dtype == ops::DType::kI8) return dispatch_mma<T, true>(p, params, stream);
  dispatch_mma<T, false>(p, params, stream);
}

}  // namespace treadle::cuda::prefill
