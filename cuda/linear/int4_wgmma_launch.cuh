// Launch of the kernel of int4_wgmma.h for one element type.
#pragma once

#include <algorithm>

#include "common/launch.h"
#include "common/tma.h"
#include "linear/int4_wgmma_kernel.cuh"

namespace treadle::cuda::int4::wgmma {

template <class T, class Out, bool kGated, class S>
void run(const ops::LinearParams& p, const Plan& plan, const stream::Parts& parts,
         cudaStream_t stream) {
  const ops::LinearWeight& w = *p.weight;
  constexpr ops::DType kAct = std::is_same_v<T, __half> ? ops::DType::kF16 : ops::DType::kBF16;
  const auto n = static_cast<uint64_t>(w.out_features);
  const auto k = static_cast<uint64_t>(w.in_features);
  const int4::Layout layout = layout_of(w, kGated);
  const auto tiles = static_cast<uint64_t>(layout.tiles);
  Args a{};
  a.out = {.y = p.y,
           .bias = w.bias,
           .n = static_cast<int>(n),
           .columns = static_cast<int>(kGated ? n / 2 : n),
           .m = p.num_tokens,
           .add = p.add};
  a.plan = plan;
  a.parts = parts;
  a.group_size = layout.group_size;
  a.groups = layout.groups;
  a.step_groups = layout.groups == 1 ? 1 : std::max(1, kDepth / layout.group_size);
  const CUtensorMap q_map = make_word_map(
      w.data, tiles, static_cast<uint64_t>(layout.k_tiles) * 128, S::kTiles, kDepth * 2);
  const CUtensorMap scale_map =
      make_word_map(words_of(layout, w.data), tiles, static_cast<uint64_t>(layout.groups) * 16,
                    S::kTiles, static_cast<uint32_t>(a.step_groups) * 16);
  const CUtensorMap x_map =
      make_tensor_map(p.x, kAct, static_cast<uint64_t>(p.num_tokens), k, k * sizeof(T), S::kTokens);
  auto* kernel = int4_wgmma_kernel<T, Out, kGated, S>;
  constexpr int kBytes = Layout<S>::kBytes;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
        "int4_wgmma: shared memory");
  launch("int4_wgmma", kernel,
         {.grid = dim3(static_cast<unsigned>(plan.blocks)),
          .block = dim3(S::kThreads),
          .shared_bytes = kBytes,
          .stream = stream,
          .dependent = true,
          .cluster = S::kPair ? 2U : 1U},
         a, q_map, scale_map, x_map);
}

template <class T, class S>
void with_output(const ops::LinearParams& p, const Plan& plan, const stream::Parts& parts,
                 cudaStream_t stream) {
  if (p.silu_mul) {
    return run<T, T, true, S>(p, plan, parts, stream);
  }
  if (p.float_output) {
    return run<T, float, false, S>(p, plan, parts, stream);
  }
  run<T, T, false, S>(p, plan, parts, stream);
}

/// A kernel for up to 64 tokens.
template <class T, int kTokens, int kStages, int kPerSm>
void with_groups(const ops::LinearParams& p, const Plan& plan, const stream::Parts& parts,
                 cudaStream_t stream) {
  const ops::LinearWeight& w = *p.weight;
  if (w.group_size >= kDepth || w.group_size == w.in_features) {
    return with_output<T, Sizes<2, kTokens, kStages, true, kPerSm>>(p, plan, parts, stream);
  }
  with_output<T, Sizes<2, kTokens, kStages, false, kPerSm>>(p, plan, parts, stream);
}

// As many stages as shared memory holds: they fill while the kernels ahead are running.
template <class T>
void dispatch(const ops::LinearParams& p, const Plan& plan, const stream::Parts& parts,
              cudaStream_t stream) {
  const auto with = [&](auto sizes) { with_output<T, decltype(sizes)>(p, plan, parts, stream); };
  if (plan.tokens == 32) {
    return plan.per_sm == 2 ? with_groups<T, 32, 6, 2>(p, plan, parts, stream)
                            : with_groups<T, 32, 12, 1>(p, plan, parts, stream);
  }
  if (plan.tokens == 64) {
    return plan.per_sm == 2 ? with_groups<T, 64, 4, 2>(p, plan, parts, stream)
                            : with_groups<T, 64, 8, 1>(p, plan, parts, stream);
  }
  if (plan.tokens == 96) {
    if (plan.rows == 256) return with(Sizes<4, 96, 5, false>{});
    if (plan.rows == 192) return with(Sizes<3, 96, 5, false>{});
    return with(Sizes<2, 96, 6, false>{});
  }
  if (plan.pair) {
    if (plan.rows == 192 && plan.tokens == 128) return with(Sizes<3, 128, 4, false, 1, true>{});
    if (plan.rows == 192) return with(Sizes<3, 192, 3, false, 1, true>{});
    if (plan.tokens == 128) return with(Sizes<2, 128, 5, false, 1, true>{});
    if (plan.tokens == 192) return with(Sizes<2, 192, 3, false, 1, true>{});
    return with(Sizes<2, 256, 3, false, 1, true>{});
  }
  if (plan.rows == 256) return with(Sizes<4, 128, 4, false>{});
  if (plan.rows == 192) {
    if (plan.tokens == 128) return with(Sizes<3, 128, 4, false>{});
    return with(Sizes<3, 192, 3, false>{});
  }
  if (plan.tokens == 128) return with(Sizes<2, 128, 5, false>{});
  if (plan.tokens == 192) return with(Sizes<2, 192, 3, false>{});
  with(Sizes<2, 256, 3, false>{});
}

}  // namespace treadle::cuda::int4::wgmma
