// Launch of the wgmma kernel for one element type.
#pragma once

#include <algorithm>
#include <type_traits>

#include "attention_prefill/launches.h"
#include "attention_prefill/wgmma_kernel.cuh"
#include "common/device.h"
#include "common/launch.h"
#include "common/tma.h"

namespace treadle::cuda::prefill {

template <class T, int kDim, bool kInt8>
void run_wgmma(const ops::AttentionParams& p, const Params& params, cudaStream_t stream) {
  using L = Layout<kDim, kInt8>;
  const size_t shared = L::kStarts + 4 * (size_t(params.num_sequences) + 1);
  auto* kernel = attention_prefill_wgmma_kernel<T, kDim, kInt8>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared)),
        "attention_prefill: shared memory");
  constexpr ops::DType kType = std::is_same_v<T, __half> ? ops::DType::kF16 : ops::DType::kBF16;
  const CUtensorMap q_map =
      make_tensor_map(p.q, kType, p.batch.num_tokens, uint64_t(p.heads) * kDim,
                      uint64_t(p.heads) * kDim * sizeof(T), kRows);
  // The pool as one matrix: row = ((block, layer, K or V, head), token). int8 needs no map.
  const CUtensorMap kv_map =
      kInt8 ? q_map
            : make_tensor_map(p.kv.base, kType, p.kv.block_elems() / kDim * p.kv.num_blocks, kDim,
                              kDim * sizeof(T), 64);
  launch("attention_prefill", kernel,
         {dim3(device_info().sms), dim3(Groups<kDim, kInt8>::kThreads), shared, stream, true},
         params, q_map, kv_map);
}

template <class T, bool kInt8>
void dispatch_wgmma(const ops::AttentionParams& p, const Params& params, cudaStream_t stream) {
  switch (p.head_dim) {
    case 64:
      return run_wgmma<T, 64, kInt8>(p, params, stream);
    case 80:
      return run_wgmma<T, 80, kInt8>(p, params, stream);
    case 96:
      return run_wgmma<T, 96, kInt8>(p, params, stream);
    case 128:
      return run_wgmma<T, 128, kInt8>(p, params, stream);
    default:
      return run_wgmma<T, 256, kInt8>(p, params, stream);
  }
}

template <class T>
void dispatch_wgmma(const ops::AttentionParams& p, const Params& params, cudaStream_t stream) {
  if (p.kv.dtype == ops::DType::kI8) return dispatch_wgmma<T, true>(p, params, stream);
  dispatch_wgmma<T, false>(p, params, stream);
}

}  // namespace treadle::cuda::prefill
