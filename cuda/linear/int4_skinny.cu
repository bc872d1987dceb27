#include <algorithm>
#include <type_traits>

#include "common/dispatch.h"
#include "linear/int4_skinny.h"
#include "linear/int4_skinny_kernel.cuh"

namespace treadle::cuda {
namespace {

using int4::Layout;
using int4::SkinnyArgs;

constexpr int kMaxSplit = 4;
constexpr int kManyTiles = 4;  // of a block where shared memory is large

/// Along K, by the layer's shape alone: until the blocks come near to filling the GPU twice.
int split_of(const Layout& layout, int tiles) {
  const DeviceInfo& device = device_info();
  if (device.capability < 90) return 1;
  const int blocks = (layout.tiles + tiles - 1) / tiles;
  int split = 1;
  while (split < kMaxSplit && 2 * split * blocks <= 2 * device.sms) split *= 2;
  return split;
}

/// Layers with rows for most multiprocessors but not for two blocks on each, and a long K: one
/// block with a deep ring is up to 40% faster there. As measured, that is: with float16 and groups
/// of 64 or more; other layers keep two blocks.
bool deep(const Layout& layout) {
  const DeviceInfo& device = device_info();
  return device.capability >= 90 && layout.tiles >= 256 && layout.k_tiles >= 64 &&
         (layout.tiles + kManyTiles - 1) / kManyTiles <= device.sms &&
         layout.group_size >= int4::kTileColumns;
}

/// Of such a layer: no more blocks than multiprocessors.
int deep_split_of(const Layout& layout) {
  return 2 * ((layout.tiles + kManyTiles - 1) / kManyTiles) <= device_info().sms ? 2 : 1;
}

template <class T, class Out, int kWarps, int kTiles, int kTokenTiles, bool kGated, int kDepth,
          int kBlocks>
void run(const SkinnyArgs& a, cudaStream_t stream) {
  const int4::SkinnyRing<kTiles> ring(a.m, a.layout.group_size < int4::kTileColumns);
  const int shared =
      std::max(kWarps * kDepth * ring.stage, int4::skinny_sum_bytes(kWarps, kTiles, kTokenTiles));
  auto* kernel =
      int4::int4_skinny_kernel<T, Out, kWarps, kTiles, kTokenTiles, kGated, kDepth, kBlocks>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
        "int4_skinny_linear: shared memory");
  const auto blocks = static_cast<unsigned>((a.layout.tiles + kTiles - 1) / kTiles * a.split);
  LaunchShape shape = dependent_launch(blocks, 32 * kWarps, stream, static_cast<size_t>(shared));
  shape.cluster = static_cast<unsigned>(a.split);
  launch("int4_skinny_linear", kernel, shape, a);
}

}  // namespace

bool supports_int4_skinny(const ops::LinearParams& p) {
  const ops::LinearWeight& w = *p.weight;
  return w.format == ops::WeightFormat::kInt4Group && p.num_tokens <= kInt4SkinnyTokens &&
         w.out_features < (1 << 30) && w.in_features < (1 << 30);
}

void int4_skinny_linear(const ops::LinearParams& p, ops::DType act, cudaStream_t stream) {
  const ops::LinearWeight& w = *p.weight;
  SkinnyArgs a{};
  a.packed = w.data;
  a.x = p.x;
  a.y = p.y;
  a.bias = w.bias;
  a.layout = int4::layout_of(w, p.silu_mul);
  a.m = p.num_tokens;
  a.add = p.add;
  const bool deep_ring = act == ops::DType::kF16 && !p.float_output && deep(a.layout);
  a.split = deep_ring ? deep_split_of(a.layout) : split_of(a.layout, kManyTiles);
  const bool large = device_info().shared_bytes >= 160 << 10;
  const auto choose = [&](auto tag, auto gated, auto output) {
    using T = typename decltype(tag)::type;
    using Out = typename decltype(output)::type;
    constexpr bool kGated = decltype(gated)::value;
    if constexpr (std::is_same_v<T, __half> && std::is_same_v<Out, __half>) {
      if (deep_ring && a.m > 8) return run<T, Out, 8, kManyTiles, 2, kGated, 4, 1>(a, stream);
      if (deep_ring) return run<T, Out, 8, kManyTiles, 1, kGated, 6, 1>(a, stream);
    }
    if (a.m > 8) {
      if (large) return run<T, Out, 8, kManyTiles, 2, kGated, 3, 2>(a, stream);
      return run<T, Out, 8, 2, 2, kGated, 3, 1>(a, stream);
    }
    if (large) return run<T, Out, 8, kManyTiles, 1, kGated, 4, 2>(a, stream);
    run<T, Out, 8, 2, 1, kGated, 4, 1>(a, stream);
  };
  with_half_type(act, [&](auto tag) {
    if (p.silu_mul) return choose(tag, std::true_type{}, tag);
    if (p.float_output) return choose(tag, std::false_type{}, TypeTag<float>{});
    choose(tag, std::false_type{}, tag);
  });
}

}  // namespace treadle::cuda
