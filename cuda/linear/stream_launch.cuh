// Launch of the streaming kernel for one element type.
#pragma once

#include "common/launch.h"
#include "common/tma.h"
#include "linear/stream_kernel.cuh"

namespace treadle::cuda::stream {

// Reads of W are 128 bytes of each row; twice that is 1% slower.
constexpr CUtensorMapL2promotion kPromotion = CU_TENSOR_MAP_L2_PROMOTION_L2_128B;

template <class T, class Out, int kTokens, int kWStages, int kXStages, bool kGated>
void run(const ops::LinearParams& p, const Plan& plan, const Parts& parts, cudaStream_t stream) {
  const ops::LinearWeight& w = *p.weight;
  constexpr ops::DType kAct = std::is_same_v<T, __half> ? ops::DType::kF16 : ops::DType::kBF16;
  const auto n = static_cast<uint64_t>(w.out_features);
  const auto k = static_cast<uint64_t>(w.in_features);
  const uint64_t row_bytes = k * sizeof(T);
  Args a{};
  a.out = {.y = p.y,
           .bias = w.bias,
           .n = static_cast<int>(n),
           .columns = static_cast<int>(kGated ? n / 2 : n),
           .m = p.num_tokens,
           .add = p.add};
  a.plan = plan;
  a.parts = parts;
  // Of a gated layer a tile has 8 gates, their 8 ups, the next 8 gates ...: then one thread has
  // both of a column.
  const CUtensorMap w_map = [&] {
    if constexpr (kGated) {
      return make_tensor_map<4>(w.data, kAct, {k, 8, 2, n / 16},
                                {row_bytes, n / 2 * row_bytes, 8 * row_bytes},
                                {kDepth, 8, 2, kRows / 16}, kPromotion);
    } else {
      return make_tensor_map(w.data, kAct, n, k, row_bytes, kRows, kPromotion);
    }
  }();
  // A box of the tokens that there are, because the copy engine is slow to fill in zeros. What it
  // leaves behind them in shared memory spoils sums of tokens that do not exist.
  a.x_bytes = p.num_tokens * kDepth * static_cast<int>(sizeof(T));
  const CUtensorMap x_map = make_tensor_map(p.x, kAct, static_cast<uint64_t>(p.num_tokens), k,
                                            row_bytes, static_cast<uint32_t>(p.num_tokens));
  auto* kernel = stream_linear_kernel<T, Out, kTokens, kWStages, kXStages, kGated>;
  constexpr int kBytes = Layout<kTokens, kWStages, kXStages>::kBytes;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
        "stream_linear: shared memory");
  launch("stream_linear", kernel,
         {.grid = dim3(static_cast<unsigned>(plan.blocks)),
          .block = dim3(kThreads),
          .shared_bytes = kBytes,
          .stream = stream,
          .dependent = true},
         a, w_map, x_map);
}

template <class T, int kTokens, int kWStages, int kXStages>
void with_output(const ops::LinearParams& p, const Plan& plan, const Parts& parts,
                 cudaStream_t stream) {
  if (p.silu_mul) return run<T, T, kTokens, kWStages, kXStages, true>(p, plan, parts, stream);
  if (p.float_output) {
    return run<T, float, kTokens, kWStages, kXStages, false>(p, plan, parts, stream);
  }
  run<T, T, kTokens, kWStages, kXStages, false>(p, plan, parts, stream);
}

// As many stages as shared memory holds beside a small kernel: they fill while the kernels ahead
// are running.
template <class T>
void dispatch(const ops::LinearParams& p, const Plan& plan, const Parts& parts,
              cudaStream_t stream) {
  if (p.num_tokens <= 16) return with_output<T, 16, 13, 8>(p, plan, parts, stream);
  if (p.num_tokens <= 32) return with_output<T, 32, 12, 8>(p, plan, parts, stream);
  if (p.num_tokens <= 64) return with_output<T, 64, 10, 7>(p, plan, parts, stream);
  with_output<T, 128, 8, 6>(p, plan, parts, stream);
}

}  // namespace treadle::cuda::stream
