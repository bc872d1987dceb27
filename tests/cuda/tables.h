// What the tests of operations share: the CPU's table beside the GPU's, runs over poisoned memory.
#pragma once

#include <cstdio>
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

/// main() of a test of operations: `tests(tables)` for each type of activations. Status for CTest.
template <class Tests>
int run_on_tables(const char* program, const Tests& tests) {
  if (ops::cuda_device_count() == 0) {
    std::printf("SKIP: no GPU\n");
    return 77;
  }
  Report report;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  const ops::Ops cpu = ops::cpu_ops(0);
  for (const ops::DType act : {ops::DType::kF16, ops::DType::kBF16}) {
    const ops::Ops gpu = ops::cuda_ops(0, act);
    tests(Tables{cpu, gpu, act, report});
    gpu.destroy(gpu.self);
  }
  cpu.destroy(cpu.self);
  return report.finish(program);
}

}  // namespace treadle::cuda::testing
