// Launch of the wgmma kernel for one element type.
#pragma once

#include <algorithm>

#include "attention_prefill/launches.h"
#include "attention_prefill/wgmma_kernel.cuh"
#include "common/device.h"
#include "common/launch.h"
#include "common/tma.h"

namespace treadle::cuda::prefill {

template <class T, int kDim>
void run_wgmma(const ops::AttentionParams& p, const Params& params, cudaStream_t stream) {
  using L = Layout<kDim>;
  const size_t shared = L::kStarts + 4 * (size_t(params.num_sequences) + 1);
  auto* kernel = attention_prefill_wgmma_kernel<T, kDim>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared)),
        "attention_prefill: shared memory");
  const CUtensorMap q_map =
      make_tensor_map(p.q, p.kv.dtype, p.batch.num_tokens, uint64_t(p.heads) * kDim,
                      uint64_t(p.heads) * kDim * sizeof(T), kRows);
  // The pool as one matrix: row = ((block, layer, K or V, head), token).
  const CUtensorMap kv_map =
      make_tensor_map(p.kv.base, p.kv.dtype, p.kv.block_elems() / kDim * p.kv.num_blocks, kDim,
                      kDim * sizeof(T), 64);
  launch("attention_prefill", kernel,
         {dim3(device_info().sms), dim3(kWgmmaThreads), shared, stream, true}, params, q_map,
         kv_map);
}

template <class T>
void dispatch_wgmma(const ops::AttentionParams& p, const Params& params, cudaStream_t stream) {
  switch (p.head_dim) {
    case 64:
      return run_wgmma<T, 64>(p, params, stream);
    case 80:
      return run_wgmma<T, 80>(p, params, stream);
    case 96:
      return run_wgmma<T, 96>(p, params, stream);
    case 128:
      return run_wgmma<T, 128>(p, params, stream);
    default:
      return run_wgmma<T, 256>(p, params, stream);
  }
}

}  // namespace treadle::cuda::prefill
