// What the tests of operations share: the CPU's table beside the GPU's, runs over poisoned memory.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "check.h"
#include "ops_cuda.h"

namespace treadle::cuda::testing {

struct Tables {
  const ops::Ops& cpu;
  const ops::Ops& gpu;
  ops::DType act;
  Report& report;
};

/// Runs `op` twice on poisoned memory and returns the output of the first run.
inline std::vector<char> run_twice(const Tables& t, const std::string& name, Memory& out,
                                   const std::function<void()>& op) {
  const std::vector<char> nans = poison(out.bytes());
  out.set(nans.data(), nans.size());
  op();
  std::vector<char> first = out.get();
  out.set(nans.data(), nans.size());
  op();
  t.report.check(out.get() == first, name + ": two runs differ");
  return first;
}

inline void expect_near(const Tables& t, const std::string& name, const std::vector<float>& got,
                        const std::vector<float>& want, double relative, double absolute) {
  const std::string what = difference(got, want, relative, absolute);
  t.report.check(what.empty(), name + ": " + what);
}

inline std::string label(const Tables& t, const char* op) {
  return std::string(op) + " " + ops::dtype_name(t.act);
}

}  // namespace treadle::cuda::testing
