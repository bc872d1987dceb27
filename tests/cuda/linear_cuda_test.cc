// Linear layers against the CPU table over types, shapes and token counts of every path, with and
// without norm, bias, gate and addition: outputs poisoned before the run, two runs equal bit for
// bit.
#include <algorithm>
#include <cmath>
#include <functional>

#include "linear_tables.h"

namespace treadle::cuda::testing {
namespace {

using ops::DType;

/// A weight on both sides.
class Layer {
 public:
  Layer(const Tables& t, const Shape& s, bool silu, bool with_bias) : t_(t) {
    const std::vector<float> w =
        random_values(t.act, size_t(s.n) * s.k, 21, 1.0F / std::sqrt(float(s.k)));
    const std::vector<float> bias = random_values(t.act, s.n, 22);
    const std::vector<char> bytes = encode(t.act, w);
    const int first = s.n / 2;
    const ops::WeightPiece pieces[] = {
        {bytes.data(), t.act, first}, {bytes.data() + size_t(first) * s.k * 2, t.act, s.n - first}};
    const float* b = with_bias ? bias.data() : nullptr;
    cpu = t.cpu.make_linear(t.cpu.self, pieces, 2, s.k, b, silu);
    gpu = t.gpu.make_linear(t.gpu.self, pieces, 2, s.k, b, silu);
  }
  ~Layer() {
    t_.cpu.release_linear(t_.cpu.self, &cpu);
    t_.gpu.release_linear(t_.gpu.self, &gpu);
  }
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;

  ops::LinearWeight cpu;
  ops::LinearWeight gpu;

 private:
  const Tables& t_;
};

/// Compares m tokens' result with the CPU's and returns it.
std::vector<char> check_product(const Tables& t, const std::string& name, const Layer& layer, int m,
                                bool silu, const Use& use) {
  const auto [want, got] = run_product(t, name, layer.cpu, layer.gpu, m, silu, use);
  // A normalised input may round the other way, here and there; cuBLASLt rounds before it adds.
  const double e = (use.add ? 2 : 1) * (use.float_output && !use.norm ? 2e-5 : epsilon(t.act));
  expect_near(t, name, decode(use.float_output ? DType::kF32 : t.act, got), want,
              silu ? 6 * e : 2 * e, silu ? 6 * e : 2 * e);
  return got;
}

void test_shape(const Tables& t, const Shape& s, bool silu, bool with_bias, bool small) {
  const Layer layer(t, s, silu, with_bias);
  std::vector<int> counts = {1, 5, 9, 17, 64};
  if (!small) counts = {1, 2, 3, 5, 8, 9, 16, 17, 33, 64, 100, 300, 600};
  for (const Use& use : {Use{false, false, false}, Use{false, false, true}, Use{true, false, false},
                         Use{true, false, true}, Use{false, true, false}, Use{true, true, false}}) {
    if (silu && (use.add || use.float_output)) continue;
    std::vector<char> first_row;
    for (const int m : counts) {
      if (use.float_output && m > 64) continue;
      // The CPU's time.
      if ((m > 300 && s.n * s.k > (1 << 20)) || (m > 64 && s.k > 10000)) continue;
      const std::string name =
          label(t, "linear") + " " + std::to_string(m) + "x" + std::to_string(s.n) + "x" +
          std::to_string(s.k) + (silu ? " silu" : "") + (with_bias ? " bias" : "") +
          (use.norm ? " norm" : "") + (use.add ? " add" : "") + (use.float_output ? " float" : "");
      const std::vector<char> got = check_product(t, name, layer, m, silu, use);
      // The first token is the same in all of them; up to eight, its result is too.
      if (m > 8) continue;
      if (m == 1) first_row = got;
      t.report.check(std::equal(first_row.begin(), first_row.end(), got.begin()),
                     name + ": depends on the batch");
    }
  }
}

void test_linear(const Tables& t, bool small) {
  std::vector<Shape> shapes = {{144, 264}};
  if (!small) {
    shapes = {{96, 64},     {1000, 264}, {768, 256},  {64, 40},
              {2048, 4096}, {37, 512},   {24, 12296}, {16, 20480}};
  }
  for (const Shape& s : shapes) {
    for (const bool silu : {false, true}) {
      if (silu && s.n % 16 != 0) continue;  // gated rows come in whole vectors
      for (const bool with_bias : {false, true}) test_shape(t, s, silu, with_bias, small);
    }
  }
}

// More tokens than are normalised or gated at a time. A bias keeps the activation a kernel of its
// own.
void test_chunks(const Tables& t) {
  const Shape s{768, 512};
  for (const bool silu : {false, true}) {
    for (const int m : {2100, 8300}) {
      const bool with_bias = !silu || m == 2100;
      const Layer layer(t, s, silu, with_bias);
      const std::string name = label(t, "linear") + " " + std::to_string(m) + "x768x512 norm" +
                               (silu ? " silu" : "") + (with_bias ? " bias" : "");
      check_product(t, name, layer, m, silu, {true, !silu, false});
    }
  }
}

// A weight above the size of an upload chunk; conversion as it is loaded.
void test_large_weight(const Tables& t) {
  const int n = 1536;
  const int k = 2048;
  const std::vector<float> w = random_values(t.act, size_t(n) * k, 31, 0.02F);
  for (const DType stored : {DType::kF32, t.act}) {
    const std::vector<char> bytes = encode(stored, w);
    const ops::WeightPiece pieces[] = {{bytes.data(), stored, n}};
    ops::LinearWeight on_cpu = t.cpu.make_linear(t.cpu.self, pieces, 1, k, nullptr, true);
    ops::LinearWeight on_gpu = t.gpu.make_linear(t.gpu.self, pieces, 1, k, nullptr, true);
    const int m = 20;
    const std::vector<float> x = random_values(t.act, size_t(m) * k, 32);
    std::vector<float> want(size_t(m) * n / 2);
    t.cpu.linear(
        t.cpu.self,
        {.x = x.data(), .weight = &on_cpu, .y = want.data(), .num_tokens = m, .silu_mul = true},
        {});
    const std::vector<char> x_bytes = encode(t.act, x);
    Memory d_x(t.gpu, x_bytes.data(), x_bytes.size());
    Memory y(t.gpu, want.size() * 2);
    const std::string name =
        label(t, "linear") + " 20x1536x2048 silu stored " + ops::dtype_name(stored);
    const auto got = run_twice(t, name, y, [&] {
      t.gpu.linear(t.gpu.self,
                   {.x = d_x.as<void>(),
                    .weight = &on_gpu,
                    .y = y.as<void>(),
                    .num_tokens = m,
                    .silu_mul = true},
                   {});
    });
    const double e = epsilon(t.act);
    expect_near(t, name, decode(t.act, got), want, 6 * e, 6 * e);
    t.cpu.release_linear(t.cpu.self, &on_cpu);
    t.gpu.release_linear(t.gpu.self, &on_gpu);
  }
}

}  // namespace
}  // namespace treadle::cuda::testing

/// With any argument the part that the sanitizers get through in a minute or two.
int main(int argc, char** /*argv*/) {
  namespace test = treadle::cuda::testing;
  const bool small = argc > 1;
  return test::run_on_tables("linear_cuda_test", [small](const test::Tables& tables) {
    test::test_linear(tables, small);
    if (small) return;
    test::test_chunks(tables);
    test::test_large_weight(tables);
  });
}
