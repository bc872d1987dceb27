// The product with 4-bit weights by mma.sync, against sums in double of the dequantised weights:
// token counts of every tile, shapes with tails in all directions, all sizes of groups, bias,
// addition, gate and float output. Outputs are poisoned, with a guard behind them, and two runs
// must agree to the bit. Beside any other tokens of a tile a token's result is the same, and a
// chain of dependent products, recorded as a graph, computes what they do one by one.
#include <string>
#include <vector>

#include "int4_product_check.cuh"
#include "linear/int4_mma.h"
#include "replay_check.cuh"

namespace treadle::cuda::testing {
namespace {

/// A token's result is the same beside any others of a tile.
void test_invariance(Report& report, const Product& product, const Shape& s) {
  const Layer layer(s, true);
  const int counts[][3] = {{32, 17, 25}, {48, 33, 40}, {64, 49, 56}, {96, 65, 80}, {128, 97, 127}};
  for (const auto& [most, some, more] : counts) {
    const auto all = check_product<__half, __half>(report, product, layer, s, {}, most);
    for (const int m : {some, more}) {
      const auto few = check_product<__half, __half>(report, product, layer, s, {}, m);
      report.check(std::memcmp(all.data(), few.data(), few.size() * 2) == 0,
                   "the results of " + std::to_string(m) + " tokens differ from theirs among " +
                       std::to_string(most));
    }
  }
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
        int4_mma(p, DType::kF16, workspace, stream);
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
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no GPU\n");
    return 77;
  }
  test::Report report;
  const gpu::StreamWorkspace workspace;
  const test::Product product{gpu::supports_int4_mma, [&](const auto& p, auto act) {
                                gpu::int4_mma(p, act, workspace, nullptr);
                              }};
  const bool small = argc > 1;
  std::vector<int> tokens = {17, 48, 120};
  std::vector<test::Shape> shapes = {{72, 72, 72, false}, {144, 1056, 32, true}};
  if (!small) {
    tokens = {1, 17, 24, 32, 33, 48, 64, 65, 118, 128, 129, 160, 300, 512};
    const test::Shape more[] = {
        {1000, 896, 128, false},  {896, 4864, 64, false},   {4096, 1024, 32, false},
        {512, 11008, 128, false}, {20008, 328, 328, false}, {40008, 192, 64, false},
        {1000, 1536, 512, false}, {1008, 896, 128, true},   {9728, 896, 64, true},
        {2816, 2048, 2048, true},
    };
    shapes.insert(shapes.end(), std::begin(more), std::end(more));
  }
  for (const test::Shape& s : shapes) {
    std::vector<int> counts = tokens;
    if (s.n > 10000) std::erase_if(counts, [](int m) { return m > 160; });  // the reference is slow
    test::test_shape<__half>(report, product, s, counts);
    test::test_shape<__nv_bfloat16>(report, product, s, counts);
  }
  if (!small) {
    test::test_shape<__half>(report, product, {1024, 512, 128, false}, {2048});
    test::test_invariance(report, product, {1000, 1536, 128, false});
    test::test_invariance(report, product, {20096, 512, 128, false});
    test::test_invariance(report, product, {6144, 1024, 128, false});
  }
  for (const int m : {40, 300}) test::test_chain(report, workspace, m, small);
  return report.finish("int4_mma_test");
}
