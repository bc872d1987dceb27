// What the tests of linear layers share: a product by both tables.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "tables.h"

namespace treadle::cuda::testing {

struct Shape {
  int n, k;
};

/// How a product is used.
struct Use {
  bool norm, add, float_output;
};

constexpr float kNormEps = 1e-5F;

/// x / sqrt(mean(x^2) + eps) * weight of each row, rounded to act.
inline std::vector<float> normalised(ops::DType act, const std::vector<float>& x,
                                     const std::vector<float>& weight) {
  const size_t width = weight.size();
  std::vector<float> out(x.size());
  for (size_t row = 0; row < x.size(); row += width) {
    double squares = 0.0;
    for (size_t i = 0; i < width; ++i) squares += double{x[row + i]} * x[row + i];
    const double scale = 1.0 / std::sqrt(squares / double(width) + kNormEps);
    for (size_t i = 0; i < width; ++i) out[row + i] = float(x[row + i] * scale * weight[i]);
  }
  return decode(act, encode(act, out));
}

/// A product's result on the CPU, and the bytes of the same on the GPU.
struct Outcome {
  std::vector<float> want;
  std::vector<char> got;
};

/// m tokens through a weight that is on both sides. Checks that the GPU's output is the same twice,
/// and its input untouched.
inline Outcome run_product(const Tables& t, const std::string& name,
                           const ops::LinearWeight& on_cpu, const ops::LinearWeight& on_gpu, int m,
                           bool silu, const Use& use) {
  const auto k = size_t(on_cpu.in_features);
  const auto columns = size_t(silu ? on_cpu.out_features / 2 : on_cpu.out_features);
  const std::vector<float> x = random_values(t.act, m * k, 23, use.norm ? 3.0F : 1.0F);
  const std::vector<float> norm = random_values(ops::DType::kF32, k, 24);
  const std::vector<float> before = random_values(t.act, m * columns, 25);
  const std::vector<float> input = use.norm ? normalised(t.act, x, norm) : x;
  Outcome outcome{before, {}};
  std::vector<float>& want = outcome.want;
  t.cpu.linear(t.cpu.self,
               {.x = input.data(),
                .weight = &on_cpu,
                .y = want.data(),
                .num_tokens = m,
                .silu_mul = silu,
                .add = use.add},
               {});

  const std::vector<char> x_bytes = encode(t.act, x);
  const std::vector<char> before_bytes = encode(t.act, before);
  Memory d_x(t.gpu, x_bytes.data(), x_bytes.size());
  Memory d_norm(t.gpu, norm.data(), norm.size() * 4);
  Memory y(t.gpu, want.size() * (use.float_output ? 4 : 2));
  outcome.got = run_twice(t, name, y, [&] {
    if (use.add) y.set(before_bytes.data(), before_bytes.size());
    t.gpu.linear(t.gpu.self,
                 {.x = d_x.as<void>(),
                  .weight = &on_gpu,
                  .norm = use.norm ? d_norm.as<float>() : nullptr,
                  .norm_eps = kNormEps,
                  .y = y.as<void>(),
                  .num_tokens = m,
                  .silu_mul = silu,
                  .add = use.add,
                  .float_output = use.float_output},
                 {});
  });
  t.report.check(d_x.get() == x_bytes, name + ": its input changed");
  return outcome;
}

}  // namespace treadle::cuda::testing
