// Products by cuBLASLt against sums in double, where another proposal than its first is taken and
// around there.
#include <utility>

#include "linear/matmul.h"
#include "product_check.cuh"

namespace treadle::cuda::testing {
namespace {

template <class T>
void test_shape(Report& report, const Shape& s, bool add, bool small) {
  Matmul matmul(kType<T>);
  const Product product{[](const auto&) { return true; },
                        [&](const ops::LinearParams& p, DType) {
                          matmul.run({.x = p.x,
                                      .w = p.weight->data,
                                      .y = p.y,
                                      .m = p.num_tokens,
                                      .n = p.weight->out_features,
                                      .k = p.weight->in_features,
                                      .add = p.add},
                                     nullptr);
                        }};
  const Layer<T> layer(s, false);
  for (const int m : {96, 127, 160, 192, 193}) {
    if (small && m != 160) continue;
    check_product<T, T>(report, product, layer, s, {.add = add}, m);
  }
}

}  // namespace
}  // namespace treadle::cuda::testing

/// With an argument: one token count, for the slow tools that watch memory.
int main(int argc, char** /*argv*/) {
  namespace test = treadle::cuda::testing;
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no GPU\n");
    return 77;
  }
  test::Report report;
  const bool small = argc > 1;
  for (const auto& [shape, add] : {std::pair{test::Shape{4096, 4096, false}, true},
                                   {test::Shape{6144, 4096, false}, false},
                                   {test::Shape{4096, 11008, false}, true}}) {
    test::test_shape<__half>(report, shape, add, small);
    test::test_shape<__nv_bfloat16>(report, shape, add, small);
    if (small) break;
  }
  return report.finish("matmul_cuda_test");
}
