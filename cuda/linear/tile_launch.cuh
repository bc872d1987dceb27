// Launch of the tiled kernel for one element type.
#pragma once

#include "common/launch.h"
#include "common/tma.h"
#include "linear/tile_kernel.cuh"

namespace treadle::cuda::tile {

constexpr int kPartBox = 32;  // tokens

template <class T, int kRows, int kStages, Share kShare>
void run(const ops::LinearParams& p, const Plan& plan, cudaStream_t stream) {
  const ops::LinearWeight& w = *p.weight;
  constexpr ops::DType kAct = std::is_same_v<T, __half> ? ops::DType::kF16 : ops::DType::kBF16;
  constexpr cuuint32_t kWBox = kShare == Share::kW ? kRows / kCluster : kRows;
  // Smaller boxes where some of x's are outside.
  constexpr int kWholeBox = kShare == Share::kX ? kTokens / kCluster : kTokens;
  const int box = p.num_tokens % kTokens == 0 ? kWholeBox : kPartBox;
  const auto n = static_cast<uint64_t>(w.out_features);
  const auto k = static_cast<uint64_t>(w.in_features);
  const uint64_t row_bytes = k * sizeof(T);
  // A tile has 8 gates, their 8 ups, the next 8 gates ...: then one thread has both of a column.
  const CUtensorMap w_map = make_tensor_map<4>(
      w.data, kAct, {k, 8, 2, n / 16}, {row_bytes, n / 2 * row_bytes, 8 * row_bytes},
      {kDepth, 8, 2, kWBox / 16}, CU_TENSOR_MAP_L2_PROMOTION_L2_256B);
  const CUtensorMap x_map = make_tensor_map(p.x, kAct, static_cast<uint64_t>(p.num_tokens), k,
                                            row_bytes, static_cast<uint32_t>(box));
  const Args a{
      .y = p.y, .columns = static_cast<int>(n / 2), .m = p.num_tokens, .box = box, .plan = plan};
  auto* kernel = tile_linear_kernel<T, kRows, kStages, kShare>;
  constexpr int kBytes = Layout<kRows, kStages>::kBytes;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
        "tile_linear: shared memory");
  launch("tile_linear", kernel,
         {.grid = dim3(static_cast<unsigned>(plan.blocks)),
          .block = dim3(kThreads),
          .shared_bytes = kBytes,
          .stream = stream,
          .dependent = true,
          .cluster = kCluster},
         a, x_map, w_map);
}

template <class T>
void dispatch(const ops::LinearParams& p, const Plan& plan, cudaStream_t stream) {
  if (plan.share == Share::kX) {
    if (plan.rows == 176) return run<T, 176, 5, Share::kX>(p, plan, stream);
    return run<T, 224, 4, Share::kX>(p, plan, stream);
  }
  if (plan.rows == 192) return run<T, 192, 4, Share::kW>(p, plan, stream);
  if (plan.rows == 224) return run<T, 224, 4, Share::kW>(p, plan, stream);
  run<T, 256, 4, Share::kW>(p, plan, stream);
}

}  // namespace treadle::cuda::tile
