#include <algorithm>
#include <bit>
#include <type_traits>

#include "common/dispatch.h"
#include "linear/int4_skinny.h"
#include "linear/int4_skinny_kernel.cuh"

namespace treadle::cuda {
namespace {

using int4::Layout;
using int4::SkinnyArgs;

// Every plan has this many warps, so that the order of a sum does not depend on the tokens.
constexpr int kWarps = 8;
constexpr int kNarrowTiles = 4;  // of a block
constexpr int kMinSteps = 32;    // of 64 columns, that are worth a block

int blocks_of(const Layout& layout, int tiles) { return (layout.tiles + tiles - 1) / tiles; }

/// Layers that one block on each multiprocessor covers.
bool narrow(const Layout& layout) { return blocks_of(layout, kNarrowTiles) <= device_info().sms; }

/// Blocks that share rows of W, by the layer's shape alone.
int split_of(const Layout& layout) {
  if (device_info().capability < 90 || !narrow(layout)) return 1;
  const int blocks = blocks_of(layout, kNarrowTiles);
  int split = 1;
  while (split < 4 && 2 * split * blocks <= device_info().sms &&
         layout.k_tiles >= 3 * split * kMinSteps) {
    split *= 2;
  }
  return split;
}

/// Tiles of the busiest multiprocessor.
int most_tiles(const Layout& layout, int tiles) {
  const int sms = device_info().sms;
  return (blocks_of(layout, tiles) + sms - 1) / sms * tiles;
}

template <class T, class Out, int kTiles, int kTokenTiles, bool kGated, bool kFine, int kDepth,
          int kBlocks>
void run_groups(SkinnyArgs a, cudaStream_t stream) {
  a.split = split_of(a.layout);
  const int shared = std::max(kWarps * int4::SkinnyRing<kTiles, kFine, kDepth>::bytes(a.m),
                              int4::skinny_sum_bytes(kWarps, kTiles, kTokenTiles));
  auto* kernel = int4::int4_skinny_kernel<T, Out, kWarps, kTiles, kTokenTiles, kGated, kFine,
                                          kDepth, kBlocks, 2>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
        "int4_skinny_linear: shared memory");
  const auto blocks = static_cast<unsigned>((a.layout.tiles + kTiles - 1) / kTiles * a.split);
  LaunchShape shape = dependent_launch(blocks, 32 * kWarps, stream, static_cast<size_t>(shared));
  shape.cluster = static_cast<unsigned>(a.split);
  launch("int4_skinny_linear", kernel, shape, a);
}

template <class T, class Out, int kTiles, int kTokenTiles, bool kGated, int kDepth, int kBlocks>
void run(const SkinnyArgs& a, cudaStream_t stream) {
  if (a.layout.groups > 1 && a.layout.group_size < int4::kTileColumns) {
    return run_groups<T, Out, kTiles, kTokenTiles, kGated, true, kDepth, kBlocks>(a, stream);
  }
  run_groups<T, Out, kTiles, kTokenTiles, kGated, false, kDepth, kBlocks>(a, stream);
}

}  // namespace

bool supports_int4_skinny(const ops::LinearParams& p) {
  const ops::LinearWeight& w = *p.weight;
  return w.format == ops::WeightFormat::kInt4Group &&
         int4::layout_of(w, p.silu_mul).bytes() < size_t{1} << 32;
}

void int4_skinny_linear(const ops::LinearParams& p, ops::DType act, cudaStream_t stream) {
  const ops::LinearWeight& w = *p.weight;
  SkinnyArgs a{};
  a.packed = w.data;
  a.x = p.x;
  a.y = p.y;
  a.bias = w.bias;
  a.layout = int4::layout_of(w, p.silu_mul);
  // Groups have 32, 64, 128, ... columns, or all.
  a.group_shift =
      a.layout.groups > 1 ? std::countr_zero(static_cast<unsigned>(a.layout.group_size)) : 31;
  a.m = p.num_tokens;
  a.add = p.add;
  // Narrow layers: one deep ring on each multiprocessor. Wide ones: as many warps as fit, and tiles
  // so that all multiprocessors have about as many.
  const bool large = device_info().shared_bytes >= 160 << 10;
  const bool is_narrow = narrow(a.layout);
  const bool seven = most_tiles(a.layout, 7) < most_tiles(a.layout, kNarrowTiles);
  const auto choose = [&](auto tag, auto gated, auto output) {
    using T = typename decltype(tag)::type;
    using Out = typename decltype(output)::type;
    constexpr bool kGated = decltype(gated)::value;
    if (a.m > 8) {
      if (!large) return run<T, Out, 2, 2, kGated, 3, 1>(a, stream);
      if (is_narrow) return run<T, Out, kNarrowTiles, 2, kGated, 4, 1>(a, stream);
      return run<T, Out, 4, 2, kGated, 3, 2>(a, stream);
    }
    if (!large) return run<T, Out, 2, 1, kGated, 4, 1>(a, stream);
    if (is_narrow) return run<T, Out, kNarrowTiles, 1, kGated, 6, 1>(a, stream);
    if (seven) return run<T, Out, 7, 1, kGated, 3, 2>(a, stream);
    run<T, Out, 4, 1, kGated, 3, 3>(a, stream);
  };
  with_half_type(act, [&](auto tag) {
    if (p.silu_mul) return choose(tag, std::true_type{}, tag);
    if (p.float_output) return choose(tag, std::false_type{}, TypeTag<float>{});
    choose(tag, std::false_type{}, tag);
  });
}

}  // namespace treadle::cuda
