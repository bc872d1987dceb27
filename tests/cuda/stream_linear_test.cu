// The streaming product by itself, against sums in double: token counts of every tile, shapes with
// tails in all directions, bias, addition, gate and float output. Outputs are poisoned, with a
// guard behind them, and two runs must agree to the bit. A chain of dependent products, recorded as
// a graph, must compute what the same products do one by one.
#include <string>
#include <vector>

#include "common/device.h"
#include "linear/stream_linear.h"
#include "product_check.cuh"
#include "replay_check.cuh"

namespace treadle::cuda::testing {
namespace {

template <class T>
void test_shape(Report& report, const Product& product, const Shape& s, bool small) {
  for (const Use& use :
       {Use{false, false, false}, Use{true, true, false}, Use{true, false, true}}) {
    if (s.gated && (use.add || use.float_output)) continue;
    const Layer<T> layer(s, use.bias || s.gated);
    std::vector<int> counts = {9,  12, 16, 17, 24, 31, 32,  33,  48, 63,
                               64, 65, 80, 81, 96, 97, 100, 127, 128};
    if (small) counts = {9, 33, 65, 128};
    // More where clusters take them (stream_many_kernel.cuh).
    if (!s.gated && product.supports({.weight = &layer.weight, .num_tokens = 192})) {
      std::vector<int> many = {129, 130, 144, 145, 159, 160, 177, 191, 192};
      if (small) many = {130};
      counts.insert(counts.end(), many.begin(), many.end());
    }
    for (const int m : counts) {
      if (use.float_output && m > kStreamTokens) continue;
      if (s.n > 10000 && m % 16 > 1) continue;  // the host's time
      if (use.float_output) {
        check_product<T, float>(report, product, layer, s, use, m);
      } else {
        check_product<T, T>(report, product, layer, s, use, m);
      }
    }
  }
}

/// A token's result is the same beside any others.
void test_invariance(Report& report, const Product& product, const Shape& s, int most) {
  const Layer<__half> layer(s, true);
  const auto all = check_product<__half, __half>(report, product, layer, s, {}, most);
  for (const int m : {9, 32, 64, 81, 129}) {
    if (m > most) continue;
    const auto some = check_product<__half, __half>(report, product, layer, s, {}, m);
    report.check(std::memcmp(all.data(), some.data(), some.size() * 2) == 0,
                 "the results of " + std::to_string(m) + " tokens differ from theirs among " +
                     std::to_string(most));
  }
}

/// What stream_linear() would compute wrongly or not at all.
void test_refusals(Report& report) {
  const auto supports = [](int n, int k, const ops::LinearParams& use) {
    const ops::LinearWeight w{.in_features = k, .out_features = n};
    ops::LinearParams p = use;
    p.weight = &w;
    return supports_stream_linear(p);
  };
  report.check(supports(4096, 1024, {.num_tokens = 192}), "192 tokens of a narrow layer");
  report.check(!supports(4096, 1024, {.num_tokens = 193}), "193 tokens");
  report.check(!supports(4096, 1024, {.num_tokens = 129, .silu_mul = true}), "129 tokens, gated");
  report.check(!supports(4096, 1024, {.num_tokens = 129, .float_output = true}),
               "129 tokens, float output");
  report.check(!supports(40960, 1024, {.num_tokens = 129}), "129 tokens of a wide layer");
  report.check(!supports(31 * 128, 1024, {.num_tokens = 129}), "129 tokens, odd tiles");
  report.check(!supports(4096, 1020, {.num_tokens = 32}), "rows of no whole 16 bytes");
}

/// Products that overlap and depend on each other, replayed.
void test_chain(Report& report, const StreamWorkspace& workspace) {
  const int width = 1024;
  const int inner = 2816;
  const Layer<__half> up({2 * inner, width, true}, false);
  const Layer<__half> down({width, inner, false}, false);
  check_replayed_layers(report, up.weight, down.weight, 40,
                        [&](const ops::LinearParams& p, cudaStream_t stream) {
                          stream_linear(p, DType::kF16, workspace, stream);
                        });
}

}  // namespace
}  // namespace treadle::cuda::testing

/// With an argument: a few small shapes, for the slow tools that watch memory.
int main(int argc, char** /*argv*/) {
  namespace gpu = treadle::cuda;
  namespace test = treadle::cuda::testing;
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0 ||
      gpu::device_info().capability != 90 || !gpu::stream::built()) {
    std::printf("no GPU with wgmma, or a build without it\n");
    return 77;
  }
  test::Report report;
  const gpu::StreamWorkspace workspace;
  const test::Product product{gpu::supports_stream_linear, [&](const auto& p, auto act) {
                                gpu::stream_linear(p, act, workspace, nullptr);
                              }};
  std::vector<test::Shape> shapes = {{72, 72, false}, {144, 520, true}, {200, 520, false}};
  if (argc <= 1) {
    const test::Shape more[] = {{1000, 896, false},  {896, 4864, false},  {4096, 1024, false},
                                {512, 11008, false}, {20008, 328, false}, {40008, 136, false},
                                {3976, 520, false},  {5120, 776, false},  {6136, 840, false},
                                {1008, 896, true},   {9728, 896, true},   {2816, 2048, true}};
    shapes.insert(shapes.end(), std::begin(more), std::end(more));
  }
  for (const test::Shape& s : shapes) {
    test::test_shape<__half>(report, product, s, argc > 1);
    if (argc <= 1) test::test_shape<__nv_bfloat16>(report, product, s, false);
  }
  test::test_refusals(report);
  if (argc <= 1) {
    test::test_invariance(report, product, {1000, 1536, false}, 128);
    test::test_invariance(report, product, {4096, 1536, false}, 192);
  }
  test::test_chain(report, workspace);
  return report.finish("stream_linear_test");
}
