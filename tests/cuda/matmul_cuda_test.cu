// Products by cuBLASLt against sums in double, where another proposal than its first is taken and
// around there; and with spare rows.
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

/// Rows behind the tokens' may be computed, with whatever x has there, but never more than there
/// are, and the tokens' results stay the same.
void test_spare_rows(Report& report, int n, int m, int rows, bool add) {
  const Shape s{n, 1032, false};
  Matmul matmul(DType::kF16);
  const Layer<__half> layer(s, false);
  Array<__half> x(size_t(rows) * s.k);
  Array<__half> tokens(size_t(m) * s.k);
  Array<__half> y(size_t(rows) * s.n + kGuard);
  Array<__half> before(size_t(m) * s.n);
  tokens.fill(3, 1.0F);
  before.fill(4, 2.0F);
  x.poison();
  check(cudaMemcpy(x.get(), tokens.get(), tokens.bytes(), cudaMemcpyDeviceToDevice), "copy");
  std::vector<__half> want;
  for (const int spare : {0, rows - m - 1, rows - m}) {
    y.poison();
    check(cudaMemcpy(y.get(), before.get(), before.bytes(), cudaMemcpyDeviceToDevice), "copy");
    matmul.run({.x = x.get(),
                .w = layer.w(),
                .y = y.get(),
                .m = m,
                .spare_rows = spare,
                .n = s.n,
                .k = s.k,
                .add = add},
               nullptr);
    check(cudaDeviceSynchronize(), "product");
    const std::vector<__half> got = y.host();
    if (spare == 0) want = got;
    const std::string name = std::to_string(m) + " tokens, " + std::to_string(spare) +
                             " spare rows" + (add ? " add" : "");
    report.check(std::memcmp(got.data(), want.data(), before.bytes()) == 0,
                 name + ": other results than without");
    const auto* bytes = reinterpret_cast<const unsigned char*>(got.data());
    const size_t end = (size_t(m) + spare) * s.n * sizeof(__half);
    report.check(std::all_of(bytes + end, bytes + y.bytes(), [](auto b) { return b == 0xff; }),
                 name + ": wrote behind them");
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
  for (const bool add : {false, true}) {
    test::test_spare_rows(report, 8192, 130, 192, add);
    test::test_spare_rows(report, 4096, 200, 256, add);
  }
  return report.finish("matmul_cuda_test");
}
