// The tiled product by itself, against sums in double: token counts around a tile's and with
// several tiles, shapes with tails in all directions. A chain of dependent products, recorded as a
// graph, must compute what the same products do one by one.
#include <string>
#include <vector>

#include "common/device.h"
#include "linear/tile_linear.h"
#include "product_check.cuh"
#include "replay_check.cuh"

namespace treadle::cuda::testing {
namespace {

template <class T>
void test_shape(Report& report, const Product& product, const Shape& s,
                const std::vector<int>& counts) {
  const Layer<T> layer(s, false);
  for (const int m : counts) check_product<T, T>(report, product, layer, s, {}, m);
}

/// Only what its epilogue knows: linear() takes it wherever it says that it computes something.
void test_refusals(Report& report) {
  const Layer<__half> layer({1024, 1024, true}, false);
  const Layer<__half> with_bias({1024, 1024, true}, true);
  const Layer<__half> narrow({1024, 504, true}, false);
  const auto supports = [](const Layer<__half>& l, bool gated, bool add, bool float_output) {
    return supports_tile_linear({.weight = &l.weight,
                                 .num_tokens = 300,
                                 .silu_mul = gated,
                                 .add = add,
                                 .float_output = float_output});
  };
  report.check(supports(layer, true, false, false), "a gated layer is refused");
  report.check(!supports(layer, false, false, false), "a layer without a gate is taken");
  report.check(!supports(layer, false, true, false), "an addition is taken");
  report.check(!supports(layer, false, false, true), "float32 results are taken");
  report.check(!supports(with_bias, true, false, false), "a bias is taken");
  report.check(!supports(narrow, true, false, false), "too short a K is taken");
  if (device_info().sms != 132) return;
  // Where cuBLASLt's proposal takes 1.7 times as long.
  const ops::LinearWeight wide{.in_features = 4096, .out_features = 28672};
  for (const int m : {385, 448}) {
    report.check(prefers_tile_linear({.weight = &wide, .num_tokens = m, .silu_mul = true}),
                 std::to_string(m) + " tokens of a wide gated layer are left to cuBLASLt");
  }
}

/// A token's result is the same beside any others.
void test_invariance(Report& report, const Product& product) {
  const Shape s{2048, 1024, true};
  const Layer<__half> layer(s, false);
  const auto all = check_product<__half, __half>(report, product, layer, s, {}, 700);
  for (const int m : {1, 96, 129, 256, 300}) {
    const auto some = check_product<__half, __half>(report, product, layer, s, {}, m);
    report.check(std::memcmp(all.data(), some.data(), some.size() * 2) == 0,
                 "the results of " + std::to_string(m) + " tokens differ from theirs among 700");
  }
}

/// Products that overlap and depend on each other, replayed.
void test_chain(Report& report) {
  const int m = 300;
  const int width = 1408;
  const Layer<__half> layer({2 * width, width, true}, false);
  Array<__half> start(size_t(m) * width);
  start.fill(5, 1.5F);
  Array<__half> a(size_t(m) * width);
  Array<__half> b(size_t(m) * width);
  const StreamHandle stream = make_stream();
  const auto body = [&](bool wait) {
    check(cudaMemcpyAsync(a.get(), start.get(), start.bytes(), cudaMemcpyDeviceToDevice,
                          stream.get()),
          "copy");
    for (int i = 0; i < 8; ++i) {
      const Array<__half>& x = i % 2 == 0 ? a : b;
      const Array<__half>& y = i % 2 == 0 ? b : a;
      tile_linear(
          {.x = x.get(), .weight = &layer.weight, .y = y.get(), .num_tokens = m, .silu_mul = true},
          DType::kF16, stream.get());
      if (wait) check(cudaStreamSynchronize(stream.get()), "wait");
    }
  };
  check_replays(report, stream, a, b, body);
}

}  // namespace
}  // namespace treadle::cuda::testing

/// With an argument: a few small shapes, for the slow tools that watch memory.
int main(int argc, char** /*argv*/) {
  namespace gpu = treadle::cuda;
  namespace test = treadle::cuda::testing;
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0 ||
      gpu::device_info().capability != 90 || !gpu::tile::built()) {
    std::printf("no GPU with wgmma, or a build without it\n");
    return 77;
  }
  test::Report report;
  const test::Product product{gpu::supports_tile_linear,
                              [](const auto& p, auto act) { gpu::tile_linear(p, act, nullptr); }};
  const std::vector<int> few = {1, 130};
  const std::vector<int> many = {1, 32, 63, 64, 96, 127, 128, 129, 200, 256, 257, 384, 511, 600};
  const std::vector<int> wide = {100, 128, 200, 600};
  // The shortest K and tails of it, tiles that end within a row group, tiles of all heights, more
  // tiles than the GPU has multiprocessors.
  const test::Shape shapes[] = {{144, 512, true},   {16, 520, true},   {1008, 520, true},
                                {448, 1032, true},  {4864, 896, true}, {28672, 512, true},
                                {22000, 520, true}, {6144, 576, true}};
  for (const test::Shape& s : shapes) {
    const auto& counts = argc > 1 ? few : s.n > 5000 ? wide : many;
    test::test_shape<__half>(report, product, s, counts);
    test::test_shape<__nv_bfloat16>(report, product, s, counts);
    if (argc > 1 && s.n == 16) break;
  }
  test::test_refusals(report);
  if (argc <= 1) test::test_invariance(report, product);
  test::test_chain(report);
  return report.finish("tile_linear_test");
}
