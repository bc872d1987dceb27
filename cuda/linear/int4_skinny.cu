#include <algorithm>
#include <bit>

#include "common/dispatch.h"
#include "linear/int4_skinny.h"
#include "linear/int4_skinny_kernel.cuh"

namespace treadle::cuda {
namespace {

using int4::Layout;
using int4::SkinnyArgs;

int ceil_div(int a, int b) { return (a + b - 1) / b; }

/// Tiles of a multiprocessor if each gets as many.
int fair_tiles(const Layout& layout) { return ceil_div(layout.tiles, device_info().sms); }

/// Tiles of the busiest multiprocessor if blocks have `tiles`.
int most_tiles(const Layout& layout, int tiles) {
  return ceil_div(ceil_div(layout.tiles, tiles), device_info().sms) * tiles;
}

template <class T, int kWarps, int kTiles, int kTokenTiles, bool kFine, int kDepth, int kBlocks>
void run_groups(const SkinnyArgs& a, cudaStream_t stream) {
  const int shared = std::max(kWarps * int4::SkinnyRing<kTiles, kFine, kDepth>::bytes(a.m),
                              int4::skinny_sum_bytes(kWarps, kTiles, kTokenTiles));
  auto* kernel = int4::int4_skinny_kernel<T, kWarps, kTiles, kTokenTiles, kFine, kDepth, kBlocks>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
        "int4_skinny_linear: shared memory");
  const auto blocks = static_cast<unsigned>(ceil_div(a.layout.tiles, kTiles));
  launch("int4_skinny_linear", kernel,
         dependent_launch(blocks, 32 * kWarps, stream, static_cast<size_t>(shared)), a);
}

template <class T, int kWarps, int kTiles, int kTokenTiles, int kDepth, int kBlocks>
void run(const SkinnyArgs& a, cudaStream_t stream) {
  if (a.layout.groups > 1 && a.layout.group_size < int4::kTileColumns) {
    return run_groups<T, kWarps, kTiles, kTokenTiles, true, kDepth, kBlocks>(a, stream);
  }
  run_groups<T, kWarps, kTiles, kTokenTiles, false, kDepth, kBlocks>(a, stream);
}

/// Layers of so few tiles that one block on each multiprocessor has all of its share.
template <class T, int kTokenTiles>
void run_narrow(const SkinnyArgs& a, int tiles, cudaStream_t stream) {
  constexpr int kDepth = kTokenTiles == 1 ? 3 : 2;
  if (tiles == 1) return run<T, 16, 1, kTokenTiles, 3, 1>(a, stream);
  if (tiles == 2) return run<T, 16, 2, kTokenTiles, kDepth, 1>(a, stream);
  if (tiles == 3) return run<T, 16, 3, kTokenTiles, 2, 1>(a, stream);
  run<T, 16, 4, kTokenTiles, 2, 1>(a, stream);
}
constexpr int kNarrowTiles = 4;

/// Two blocks on each multiprocessor, whose tiles make the shares as equal as can be. The order of
/// a sum, that is the number of warps, must not depend on the tokens.
template <class T>
void run_wide(const SkinnyArgs& a, cudaStream_t stream) {
  const int seven = most_tiles(a.layout, 7);
  if (a.m > 8) {
    if (most_tiles(a.layout, 11) < seven) return run<T, 8, 11, 2, 2, 1>(a, stream);
    return run<T, 8, 7, 2, 2, 2>(a, stream);
  }
  const int six = most_tiles(a.layout, 6);
  const int five = most_tiles(a.layout, 5);
  if (seven <= six && seven <= five) return run<T, 8, 7, 1, 3, 2>(a, stream);
  if (six <= five) return run<T, 8, 6, 1, 3, 2>(a, stream);
  run<T, 8, 5, 1, 3, 2>(a, stream);
}

template <class T>
void choose(const SkinnyArgs& a, cudaStream_t stream) {
  const int fair = fair_tiles(a.layout);
  if (device_info().shared_bytes < 160 << 10) {
    if (a.m > 8) return run<T, 8, 2, 2, 3, 1>(a, stream);
    return run<T, 8, 2, 1, 4, 1>(a, stream);
  }
  if (fair > kNarrowTiles) return run_wide<T>(a, stream);
  if (a.m > 8) return run_narrow<T, 2>(a, fair, stream);
  run_narrow<T, 1>(a, fair, stream);
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
  a.float_output = p.float_output;
  with_half_type(act, [&](auto tag) { choose<typename decltype(tag)::type>(a, stream); });
}

}  // namespace treadle::cuda
