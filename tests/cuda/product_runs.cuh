// How the tests of products run one: outputs are poisoned, with a guard behind them, and two runs
// must agree to the bit.
#pragma once

#include <cstring>
#include <functional>
#include <string>
#include <type_traits>
#include <vector>

#include "check.h"
#include "device_array.cuh"
#include "ops/ops.h"

namespace treadle::cuda::testing {

using ops::DType;

struct Use {
  bool bias, add, float_output;
};

template <class T>
constexpr DType kType = std::is_same_v<T, __half> ? DType::kF16 : DType::kBF16;

/// A product under test; `run` uses the default stream.
struct Product {
  std::function<bool(const ops::LinearParams&)> supports;
  std::function<void(const ops::LinearParams&, DType)> run;
  bool float_output = true;  // whether it has float32 outputs
};

constexpr size_t kGuard = 64;  // values behind the output

/// Runs `p`, whose y is `y` with kGuard values behind the output, twice; with p.add y has the
/// values of `before` first. Returns all of y after the first run.
template <class T, class Out>
std::vector<Out> run_twice(Report& report, const Product& product, const std::string& name,
                           const ops::LinearParams& p, DType act, const Array<T>& before,
                           Array<Out>& y) {
  std::vector<Out> got;
  for (int run = 0; run < 2; ++run) {
    y.poison();
    if (p.add) {
      check(cudaMemcpy(y.get(), before.get(), before.bytes(), cudaMemcpyDeviceToDevice), "copy");
    }
    report.check(product.supports(p), name + ": not supported");
    product.run(p, act);
    check(cudaDeviceSynchronize(), name.c_str());
    std::vector<Out> out = y.host();
    if (run == 0) got = out;
    report.check(std::memcmp(got.data(), out.data(), y.bytes()) == 0, name + ": two runs differ");
  }
  bool guard = true;
  for (size_t i = y.bytes() - kGuard * sizeof(Out); i < y.bytes(); ++i) {
    guard = guard && reinterpret_cast<const unsigned char*>(got.data())[i] == 0xff;
  }
  report.check(guard, name + ": wrote behind the output");
  return got;
}

}  // namespace treadle::cuda::testing
