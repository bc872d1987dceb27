// The product with 4-bit weights for many tokens, against sums in double of the dequantised
// weights: token counts of every tile, shapes with tails in all directions, all sizes of groups,
// bias, addition, gate and float output. Outputs are poisoned, with a guard behind them, and two
// runs must agree to the bit. A token's result is the same beside any others up to 64, and from 65
// to 128, and a chain of dependent products, recorded as a graph, computes what they do one by one.
#include <string>
#include <vector>

#include "common/device.h"
#include "int4_product_check.cuh"
#include "linear/int4_wgmma.h"
#include "replay_check.cuh"

namespace treadle::cuda::testing {
namespace {

/// A token's result is the same beside any others.
void test_invariance(Report& report, const Product& product, const Shape& s) {
  const Layer layer(s, true);
  const auto compare = [&](int most, const std::vector<int>& counts) {
    const auto all = check_product<__half, __half>(report, product, layer, s, {}, most);
    for (const int m : counts) {
      const auto some = check_product<__half, __half>(report, product, layer, s, {}, m);
      report.check(std::memcmp(all.data(), some.data(), some.size() * 2) == 0,
                   "the results of " + std::to_string(m) + " tokens differ from theirs among " +
                       std::to_string(most));
    }
  };
  compare(64, {17, 32, 33});
  compare(128, {65, 96});
}

/// Products that overlap and depend on each other, replayed.
void test_chain(Report& report, const StreamWorkspace& workspace, int m, bool small) {
  const int width = small ? 128 : 1024;
  const int inner = small ? 320 : 2816;
  const Layer up({2 * inner, width, 128, true}, false);
  const Layer down({width, inner, 64, false}, false);
  check_replayed_layers(
      report, up.weight, down.weight, m,
      [&](const ops::LinearParams& p, cudaStream_t stream) {
        int4_wgmma(p, DType::kF16, workspace, stream);
      },
      small ? 2 : 6, small ? 2 : 20);
}

}  // namespace
}  // namespace treadle::cuda::testing

/// With an argument: a few small shapes, for the slow tools that watch memory.
int main(int argc, char** /*argv*/) {
  namespace gpu = treadle::cuda;
  namespace test = treadle::cuda::testing;
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0 ||
      gpu::device_info().capability != 90 || !gpu::int4::wgmma::built()) {
    std::printf("no GPU with wgmma, or a build without it\n");
    return 77;
  }
  test::Report report;
  const gpu::StreamWorkspace workspace;
  const test::Product product{gpu::supports_int4_wgmma, [&](const auto& p, auto act) {
                                gpu::int4_wgmma(p, act, workspace, nullptr);
                              }};
  const bool small = argc > 1;
  std::vector<int> tokens = {17, 48, 128, 300};
  std::vector<test::Shape> shapes = {{72, 72, 72, false}, {144, 288, 32, true}};
  const test::Shape cut = {17000, 1024, 128, false};  // more than 128 rows a multiprocessor
  if (!small) {
    tokens = {17, 24, 32, 48, 64, 65, 96, 118, 128, 129, 152, 256, 300, 512, 1024};
    const test::Shape more[] = {
        {1000, 896, 128, false},  {896, 4864, 64, false},   {4096, 1024, 32, false},
        {512, 11008, 128, false}, {20008, 328, 328, false}, {40008, 192, 64, false},
        {1000, 1152, 384, false}, {1008, 896, 128, true},   {9728, 896, 64, true},
        {2816, 2048, 2048, true}, {17000, 2048, 32, false}, {17936, 2048, 128, true},
    };
    shapes.insert(shapes.end(), std::begin(more), std::end(more));
  }
  for (const test::Shape& s : shapes) {
    std::vector<int> counts = tokens;
    if (s.n > 10000) std::erase_if(counts, [](int m) { return m > 300; });  // the reference is slow
    test::test_shape<__half>(report, product, s, counts);
    test::test_shape<__nv_bfloat16>(report, product, s, counts);
  }
  test::test_shape<__half>(report, product, cut, {small ? 17 : 50});
  if (!small) {
    test::test_shape<__half>(report, product, {1024, 512, 128, false}, {4096});
    test::test_invariance(report, product, cut);
    test::test_invariance(report, product, {1000, 1536, 128, false});
    test::test_invariance(report, product, {20096, 512, 128, false});
    test::test_invariance(report, product, {17000, 1024, 64, false});
    test::test_invariance(report, product, {6144, 1024, 128, false});
  }
  for (const int m : {40, 300}) test::test_chain(report, workspace, m, small);
  return report.finish("int4_wgmma_test");
}
