// Launch of the kernel of stream_many_kernel.cuh for one element type.
#pragma once

#include "common/launch.h"
#include "common/tma.h"
#include "linear/stream_many_kernel.cuh"

namespace treadle::cuda::stream::many {

template <class T, class S>
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
           .columns = static_cast<int>(n),
           .m = p.num_tokens,
           .add = p.add};
  a.plan = plan;
  a.parts = parts;
  // Half of the tokens that there are, in whole atoms of the swizzle: the copy engine is slow to
  // fill in zeros. What it leaves behind them spoils sums of tokens that do not exist.
  a.box = (p.num_tokens + 15) / 16 * 8;
  const CUtensorMap w_map =
      make_tensor_map(w.data, kAct, n, k, row_bytes, kRows, CU_TENSOR_MAP_L2_PROMOTION_L2_128B);
  const CUtensorMap x_map = make_tensor_map(p.x, kAct, static_cast<uint64_t>(p.num_tokens), k,
                                            row_bytes, static_cast<uint32_t>(a.box));
  auto* kernel = stream_many_kernel<T, S>;
  constexpr int kBytes = Layout<S>::kBytes;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
        "stream_many: shared memory");
  launch("stream_many", kernel,
         {.grid = dim3(static_cast<unsigned>(plan.blocks)),
          .block = dim3(kThreads),
          .shared_bytes = kBytes,
          .stream = stream,
          .dependent = true,
          .cluster = kCluster},
         a, w_map, x_map);
}

// As many stages as shared memory holds: they fill while the kernels ahead are running.
template <class T, int kSplit>
void with_split(const ops::LinearParams& p, const Plan& plan, const Parts& parts,
                cudaStream_t stream) {
  if (p.num_tokens <= 128) return run<T, Sizes<128, 8, 6, kSplit>>(p, plan, parts, stream);
  run<T, Sizes<192, 8, 4, kSplit>>(p, plan, parts, stream);
}

template <class T>
void dispatch(const ops::LinearParams& p, const Plan& plan, const Parts& parts,
              cudaStream_t stream) {
  if (plan.split == 2) return with_split<T, 2>(p, plan, parts, stream);
  if (plan.split == 3) return with_split<T, 3>(p, plan, parts, stream);
  with_split<T, 4>(p, plan, parts, stream);
}

}  // namespace treadle::cuda::stream::many
