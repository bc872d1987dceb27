// Runs one problem through a kernel and judges the result.
#pragma once

#include <cstdio>
#include <cstring>
#include <functional>
#include <string>

#include "attention_problem.cuh"

namespace treadle::cuda::testing {

/// The rule of FlashAttention's tests: the error against the float answer may be twice that of an
/// unfused computation in T, plus twice the rounding of the answer itself. Also: every output is
/// written and a second run gives the same bits.
template <class T>
bool check_attention(const std::string& name, const ProblemShape& shape,
                     const std::function<void(const ops::AttentionParams&)>& run) {
  Problem<T> problem(shape);
  problem.poison_out();
  run(problem.params());
  check(cudaDeviceSynchronize(), name.c_str());
  const std::vector<T> got = problem.result();
  problem.poison_out();
  run(problem.params());
  check(cudaDeviceSynchronize(), name.c_str());
  const std::vector<T> again = problem.result();
  const std::vector<float> want = problem.reference(false);
  const std::vector<float> low = problem.reference(true);

  double error = 0.0;
  double low_error = 0.0;
  double rounding = 0.0;
  size_t bad = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const float x = static_cast<float>(got[i]);
    if (!std::isfinite(x)) ++bad;
    error = std::max(error, std::fabs(double(x) - want[i]));
    low_error = std::max(low_error, std::fabs(double(low[i]) - want[i]));
    rounding =
        std::max(rounding, std::fabs(double(static_cast<float>(from_float<T>(want[i]))) - want[i]));
  }
  const bool same = std::memcmp(got.data(), again.data(), got.size() * sizeof(T)) == 0;
  const bool good = bad == 0 && same && error <= 2 * low_error + 2 * rounding;
  std::printf("%s %s %s%s: error %.2e, allowed %.2e%s", good ? "ok  " : "FAIL", name.c_str(),
              std::is_same_v<T, __half> ? "fp16" : "bf16", shape.int8 ? " int8" : "", error,
              2 * low_error + 2 * rounding, same ? "" : ", runs differ");
  if (bad > 0) std::printf(", %zu of %zu not finite", bad, got.size());
  std::printf("\n");
  return good;
}

}  // namespace treadle::cuda::testing
