// cuBLASLt is loaded when the first GPU backend is made. Needs no GPU: where the library is
// missing, the message must say how to get it.
#include "linear/cublas_lt.h"

#include <dlfcn.h>

#include <cstdio>
#include <string>

#include "check.h"
#include "ops/cuda.h"
#include "treadle/error.h"

namespace treadle::cuda::testing {
namespace {

void test_loading(Report& report) {
  const std::string library = ops::cuda_library();
  const bool on_path = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL) != nullptr;
  try {
    const CublasLt& lt = cublas_lt();
    report.check(lt.matmul != nullptr && lt.heuristic != nullptr, "functions are missing");
    report.check(&cublas_lt() == &lt, "it is loaded again");
  } catch (const Error& error) {
    const std::string text = error.what();
    report.check(!on_path, library + " is there, but: " + text);
    report.check(error.code() == ErrorCode::kUnsupported, "another code");
    for (const char* part : {library.c_str(), "pip install nvidia-cublas", "/usr/local/cuda"}) {
      report.check(text.find(part) != std::string::npos, "no '" + std::string(part) + "': " + text);
    }
  }
}

}  // namespace
}  // namespace treadle::cuda::testing

int main() {
  treadle::cuda::testing::Report report;
  treadle::cuda::testing::test_loading(report);
  return report.finish("cublas_lt_test");
}
