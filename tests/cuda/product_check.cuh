// What the tests of products share: layers of random weights, and a product's check against sums in
// double. Outputs are poisoned, with a guard behind them, and two runs must agree to the bit.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "check.h"
#include "common/dispatch.h"
#include "common/handles.h"
#include "common/vec.cuh"
#include "product_runs.cuh"

namespace treadle::cuda::testing {

template <class T>
__global__ void reference_kernel(const T* x, const T* w, const float* bias, double* y, int n,
                                 int k) {
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  if (column >= n) return;
  const T* row = x + size_t(blockIdx.y) * k;
  double sum = bias != nullptr ? bias[column] : 0.0;
  for (int i = 0; i < k; ++i) {
    sum += double{to_float(row[i])} * double{to_float(w[size_t(column) * k + i])};
  }
  y[size_t(blockIdx.y) * n + column] = sum;
}

struct Shape {
  int n, k;
  bool gated;
};
inline float rounded(DType act, double x) {
  const uint16_t bits = half_bits(act, static_cast<float>(x));
  return float_of(act, reinterpret_cast<const char*>(&bits));
}

template <class T>
class Layer {
 public:
  Layer(const Shape& shape, bool with_bias)
      : w_(size_t(shape.n) * shape.k), bias_(static_cast<size_t>(shape.n)) {
    w_.fill(1, 2.0F / std::sqrt(float(shape.k)));
    bias_.fill(2, 1.0F);
    weight.data = w_.get();
    weight.bias = with_bias ? bias_.get() : nullptr;
    weight.out_features = shape.n;
    weight.in_features = shape.k;
    weight.dtype = kType<T>;
  }
  const T* w() const { return w_.get(); }
  ops::LinearWeight weight;

 private:
  Array<T> w_;
  Array<float> bias_;
};

/// One product by `Out` = T or float. Returns the bytes of the first run.
template <class T, class Out>
std::vector<Out> check_product(Report& report, const Product& product, const Layer<T>& layer,
                               const Shape& s, const Use& use, int m) {
  const DType act = kType<T>;
  const std::string name = std::string(ops::dtype_name(act)) + " " + std::to_string(m) + "x" +
                           std::to_string(s.n) + "x" + std::to_string(s.k) +
                           (s.gated ? " gated" : "") + (use.bias ? " bias" : "") +
                           (use.add ? " add" : "") + (use.float_output ? " float" : "");
  const int columns = s.gated ? s.n / 2 : s.n;
  const size_t outputs = size_t(m) * columns;
  Array<T> x(size_t(m) * s.k);
  x.fill(3, 1.0F);
  Array<T> before(outputs);
  before.fill(4, 2.0F);
  Array<double> sums(size_t(m) * s.n);
  reference_kernel<<<dim3((s.n + 127) / 128, m), 128>>>(x.get(), layer.w(), layer.weight.bias,
                                                        sums.get(), s.n, s.k);
  Array<Out> y(outputs + kGuard);
  const ops::LinearParams p{.x = x.get(),
                            .weight = &layer.weight,
                            .y = y.get(),
                            .num_tokens = m,
                            .silu_mul = s.gated,
                            .add = use.add,
                            .float_output = use.float_output};
  std::vector<Out> got = run_twice(report, product, name, p, act, before, y);

  const std::vector<double> want_sums = sums.host();
  const std::vector<T> old = before.host();
  double difference = 0.0;
  double total = 0.0;
  double worst = 0.0;
  for (int t = 0; t < m; ++t) {
    for (int i = 0; i < columns; ++i) {
      const double* row = want_sums.data() + size_t(t) * s.n;
      double want = row[i];
      if (s.gated) {
        const double gate = rounded(act, row[i]);
        want = gate / (1.0 + std::exp(-gate)) * rounded(act, row[columns + i]);
      }
      const size_t at = size_t(t) * columns + i;
      if (use.add) want += float_of(act, reinterpret_cast<const char*>(&old[at]));
      const DType out = use.float_output ? DType::kF32 : act;
      const double d = std::fabs(float_of(out, reinterpret_cast<const char*>(&got[at])) - want);
      difference += d;
      total += std::fabs(want);
      worst = std::max(worst, d);  // not-a-number shows in the mean
    }
  }
  // Of rounding alone the mean error is about a third of epsilon.
  const double e = use.float_output ? 1e-5 : epsilon(act);
  report.check(difference < e * total, name + ": mean error " + std::to_string(difference / total));
  report.check(worst < 16 * e, name + ": largest error " + std::to_string(worst));
  got.resize(outputs);
  return got;
}

}  // namespace treadle::cuda::testing
