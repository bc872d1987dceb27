// What the tests of products with 4-bit weights share: layers of random numbers, and a product's
// check against sums in double of the dequantised weights. Outputs are poisoned, with a guard
// behind them, and two runs must agree to the bit.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "check.h"
#include "linear/int4_pack.h"
#include "product_runs.cuh"

namespace treadle::cuda::testing {

struct Shape {
  int n, k, group;
  bool gated;
};
/// Numbers 0 to 15, zeros 0 to 16, and scales that half precision holds.
static __global__ void fill_weight_kernel(uint8_t* q, float* scales, uint8_t* zeros, size_t bytes,
                                          size_t groups, float scale) {
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < bytes;
       i += size_t(gridDim.x) * blockDim.x) {
    q[i] = static_cast<uint8_t>(hash_of(i, 11) >> 50);
    if (i < groups) {
      const uint64_t bits = hash_of(i, 12);
      scales[i] = __half2float(__float2half_rn(scale * (0.5F + float(bits >> 60) / 16.0F)));
      zeros[i] = static_cast<uint8_t>((bits >> 20) % 17);
    }
  }
}

struct Matrix {
  const uint8_t* q;
  const float* scales;
  const uint8_t* zeros;
  const float* bias;  // or null
  int n, k, group, groups;
};

template <class T>
__global__ void reference_kernel(Matrix w, const T* x, double* y) {
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  if (column >= w.n) return;
  const T* row = x + size_t(blockIdx.y) * w.k;
  double sum = w.bias != nullptr ? w.bias[column] : 0.0;
  for (int i = 0; i < w.k; ++i) {
    const size_t at = size_t(column) * w.k + i;
    const int q = w.q[at / 2] >> (i % 2 * 4) & 15;
    const size_t group = size_t(column) * w.groups + i / w.group;
    sum += double{to_float(row[i])} * double{(q - w.zeros[group]) * w.scales[group]};
  }
  y[size_t(blockIdx.y) * w.n + column] = sum;
}

struct Errors {
  double difference, total, worst;  // worst: of 1 + |want|; NaN where an output is
};

template <class T, class Out>
__global__ void compare_kernel(const double* sums, const T* before, const Out* y, int m, int n,
                               bool gated, bool add, Errors* errors) {
  const int columns = gated ? n / 2 : n;
  double difference = 0.0;
  double total = 0.0;
  double worst = 0.0;
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < size_t(m) * columns;
       i += size_t(gridDim.x) * blockDim.x) {
    const double* row = sums + i / columns * n;
    double want = row[i % columns];
    if (gated) {
      const double gate = to_float(from_float<T>(static_cast<float>(want)));
      const double up = to_float(from_float<T>(static_cast<float>(row[columns + i % columns])));
      want = gate / (1.0 + exp(-gate)) * up;
    }
    if (add) want += to_float(before[i]);
    const double d = fabs(to_float(y[i]) - want);
    difference += d;
    total += fabs(want);
    const double relative = d / (1.0 + fabs(want));
    worst = relative <= worst ? worst : relative;
  }
  atomicAdd(&errors->difference, difference);
  atomicAdd(&errors->total, total);
  // Numbers that are not negative are ordered as their bits are, and NaN is above them.
  atomicMax(reinterpret_cast<unsigned long long*>(&errors->worst),
            static_cast<unsigned long long>(__double_as_longlong(worst)) & ~(1ULL << 63));
}

class Layer {
 public:
  Layer(const Shape& s, bool with_bias)
      : q_(size_t(s.n) * s.k / 2),
        scales_(size_t(s.n) * (s.k / s.group)),
        zeros_(scales_.count()),
        bias_(static_cast<size_t>(s.n)),
        packed_(int4::layout_of(s.n, s.k, s.group, s.gated).bytes()) {
    fill_weight_kernel<<<256, 256>>>(q_.get(), scales_.get(), zeros_.get(), q_.bytes(),
                                     scales_.count(), 0.4F / std::sqrt(float(s.k)));
    bias_.fill(2, 1.0F);
    packed_.poison();
    int4::pack(int4::layout_of(s.n, s.k, s.group, s.gated),
               {.q = q_.get(), .scales = scales_.get(), .zeros = zeros_.get()}, packed_.get(),
               nullptr);
    check(cudaDeviceSynchronize(), "pack");
    weight.format = ops::WeightFormat::kInt4Group;
    weight.data = packed_.get();
    weight.bias = with_bias ? bias_.get() : nullptr;
    weight.out_features = s.n;
    weight.in_features = s.k;
    weight.group_size = s.group;
    matrix = {.q = q_.get(),
              .scales = scales_.get(),
              .zeros = zeros_.get(),
              .bias = weight.bias,
              .n = s.n,
              .k = s.k,
              .group = s.group,
              .groups = s.k / s.group};
  }
  ops::LinearWeight weight;
  Matrix matrix{};

 private:
  Array<uint8_t> q_;
  Array<float> scales_;
  Array<uint8_t> zeros_;
  Array<float> bias_;
  Array<uint8_t> packed_;
};

/// One product by `Out` = T or float. Returns the output of the first run.
template <class T, class Out>
std::vector<Out> check_product(Report& report, const Product& product, const Layer& layer,
                               const Shape& s, const Use& use, int m) {
  const DType act = kType<T>;
  const std::string name =
      std::string(ops::dtype_name(act)) + " " + std::to_string(m) + "x" + std::to_string(s.n) +
      "x" + std::to_string(s.k) + " group " + std::to_string(s.group) + (s.gated ? " gated" : "") +
      (use.bias ? " bias" : "") + (use.add ? " add" : "") + (use.float_output ? " float" : "");
  const int columns = s.gated ? s.n / 2 : s.n;
  const size_t outputs = size_t(m) * columns;
  Array<T> x(size_t(m) * s.k);
  x.fill(3, 1.0F);
  Array<T> before(outputs);
  before.fill(4, 2.0F);
  Array<double> sums(size_t(m) * s.n);
  reference_kernel<<<dim3((s.n + 127) / 128, m), 128>>>(layer.matrix, x.get(), sums.get());
  Array<Out> y(outputs + kGuard);
  const ops::LinearParams p{.x = x.get(),
                            .weight = &layer.weight,
                            .y = y.get(),
                            .num_tokens = m,
                            .silu_mul = s.gated,
                            .add = use.add,
                            .float_output = use.float_output};
  std::vector<Out> got = run_twice(report, product, name, p, act, before, y);

  Array<Errors> errors(1);
  check(cudaMemset(errors.get(), 0, sizeof(Errors)), "clear");
  compare_kernel<<<256, 256>>>(sums.get(), before.get(), y.get(), m, s.n, s.gated, use.add,
                               errors.get());
  const Errors e = errors.host()[0];
  // Scales, weights and outputs are rounded, each by about a third of epsilon in the mean; of gated
  // layers two products count.
  const double mean = e.difference / e.total;
  report.check(mean < (s.gated ? 2 : 1) * epsilon(act),
               name + ": mean error " + std::to_string(mean));
  report.check(e.worst < 32 * epsilon(act), name + ": largest error " + std::to_string(e.worst));
  got.resize(outputs);
  return got;
}

/// A layer with and without bias, in all uses that it has.
template <class T>
void test_shape(Report& report, const Product& product, const Shape& s,
                const std::vector<int>& tokens) {
  for (const Use& use :
       {Use{false, false, false}, Use{true, true, false}, Use{true, false, true}}) {
    if (s.gated && (use.add || use.float_output)) continue;
    if (use.float_output && !product.float_output) continue;
    const Layer layer(s, use.bias || s.gated);
    for (const int m : tokens) {
      if (use.float_output) {
        check_product<T, float>(report, product, layer, s, use, m);
      } else {
        check_product<T, T>(report, product, layer, s, use, m);
      }
    }
  }
}

}  // namespace treadle::cuda::testing
