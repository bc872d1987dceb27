// Dense matrix products of any size through cuBLASLt.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <tuple>

#include <cuda_runtime_api.h>

#include "common/handles.h"
#include "linear/cublas_lt.h"
#include "ops/ops.h"

namespace treadle::cuda {

/// y[t][n] = sum_k x[t][k] w[n][k] + bias[n] (+ y[t][n]), row-major, accumulated in float32.
struct MatmulParams {
  const void* x = nullptr;     // [m][k] of act
  const void* w = nullptr;     // [n][k] of act
  const void* bias = nullptr;  // [n] of y's type, or null
  void* y = nullptr;           // [m][ldy] of act, or float32, of which n columns are written
  int64_t m = 0;
  int64_t spare_rows = 0;  // of x and y behind the m: may be read and overwritten
  int64_t n = 0;
  int64_t k = 0;
  int64_t ldy = 0;  // 0 = n
  bool float_output = false;
  bool add = false;  // to y, of act
};

/// Borrows the device that is current at construction. One stream at a time: the workspace is one.
class Matmul {
 public:
  explicit Matmul(ops::DType act);
  ~Matmul();
  Matmul(const Matmul&) = delete;
  Matmul& operator=(const Matmul&) = delete;

  void run(const MatmulParams& p, cudaStream_t stream);

  static constexpr size_t kWorkspaceBytes = size_t{64} << 20;

 private:
  // An algorithm is chosen once for all token counts of a bucket, so that a result depends on the
  // bucket and not on what was computed before.
  using Key = std::tuple<int64_t, int64_t, int64_t, int64_t, bool, bool, bool>;
  struct Plan;
  Plan& plan_for(const MatmulParams& p);

  const CublasLt& lt_;
  const cudaDataType_t act_;
  cublasLtHandle_t handle_ = nullptr;
  DeviceMemory workspace_;
  std::map<Key, std::unique_ptr<Plan>> plans_;
};

}  // namespace treadle::cuda
