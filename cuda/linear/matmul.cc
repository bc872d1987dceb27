#include "linear/matmul.h"

#include <string>

#include "common/check.h"
#include "common/device.h"

namespace treadle::cuda {
namespace {

void check_lt(const CublasLt& lt, cublasStatus_t status, const std::string& what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw Error(ErrorCode::kDevice, what + ": " + lt.status_string(status));
}

/// Token counts that share an algorithm: the largest of the bucket that m is in.
int64_t bucket_of(int64_t m) {
  if (m <= 16) return m;
  const int64_t step = m <= 128 ? 16 : m <= 512 ? 64 : m <= 2048 ? 256 : 1024;
  return (m + step - 1) / step * step;
}

int64_t stride_of(const MatmulParams& p) { return p.ldy > 0 ? p.ldy : p.n; }

/// The rows to multiply: whole tiles where there is memory for them. cuBLASLt's kernels take longer
/// for some of a tile's rows than for all, since zeros from outside x are brought slowly. Where it
/// was measured to be faster (docs/design/cuda-linear.md).
int64_t rows_of(const MatmulParams& p) {
  if (device_info().capability != 90 || p.float_output) return p.m;
  int64_t rows = p.m;
  if (p.m > 192 && p.m <= 384) rows = (p.m + 63) / 64 * 64;
  if (p.m > 128 && p.m <= 160 && p.n >= 8192) rows = 192;
  return rows - p.m <= p.spare_rows ? rows : p.m;
}

cudaDataType_t data_type(ops::DType dtype) {
  return dtype == ops::DType::kBF16 ? CUDA_R_16BF : CUDA_R_16F;
}

}  // namespace

// cuBLASLt is column-major: y^T [n x m] = (W^T)^T [n x k] times x^T [k x m].
struct Matmul::Plan {
  const CublasLt& lt;
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t w = nullptr;
  cublasLtMatmulAlgo_t algo{};

  explicit Plan(const CublasLt& table) : lt(table) {}
  ~Plan() {
    if (w != nullptr) lt.layout_destroy(w);
    if (desc != nullptr) lt.desc_destroy(desc);
  }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
};

namespace {

/// A column-major matrix for the length of a call.
class Layout {
 public:
  Layout(const CublasLt& lt, cudaDataType_t type, int64_t rows, int64_t columns, int64_t stride)
      : lt_(lt) {
    check_lt(lt,
             lt.layout_create(&layout_, type, static_cast<uint64_t>(rows),
                              static_cast<uint64_t>(columns), stride),
             "describe a matrix");
  }
  ~Layout() { lt_.layout_destroy(layout_); }
  Layout(const Layout&) = delete;
  Layout& operator=(const Layout&) = delete;
  cublasLtMatrixLayout_t get() const { return layout_; }

 private:
  const CublasLt& lt_;
  cublasLtMatrixLayout_t layout_ = nullptr;
};

class Preference {
 public:
  explicit Preference(const CublasLt& lt) : lt_(lt) {
    check_lt(lt, lt.preference_create(&preference_), "create a matmul preference");
  }
  ~Preference() { lt_.preference_destroy(preference_); }
  Preference(const Preference&) = delete;
  Preference& operator=(const Preference&) = delete;

  template <class V>
  void set(cublasLtMatmulPreferenceAttributes_t what, V value) {
    check_lt(lt_, lt_.preference_set(preference_, what, &value, sizeof value),
             "set a matmul preference");
  }
  cublasLtMatmulPreference_t get() const { return preference_; }

 private:
  const CublasLt& lt_;
  cublasLtMatmulPreference_t preference_ = nullptr;
};

constexpr int kProposals = 8;

// Older headers lack these names: rows of W x tokens.
constexpr uint32_t kTile144x128 = 184;
constexpr uint32_t kTile192x64 = 208;

/// The tile of another proposal than the first, where one measured 4 to 30% faster on Hopper; or 0
/// (docs/design/cuda-linear.md).
uint32_t wanted_tile(const MatmulParams& p, int64_t bucket) {
  if (device_info().capability != 90) return 0;
  const int64_t elements = p.n * p.k;
  if (p.float_output) return bucket > 64 && elements >= int64_t{1} << 28 ? kTile144x128 : 0;
  if (p.n < 4096 || p.n > 6144 || elements < int64_t{16} << 20) return 0;
  const bool small = elements < int64_t{20} << 20;
  if (bucket > 80 && bucket <= 128) return small ? uint32_t{CUBLASLT_MATMUL_TILE_96x64} : 0;
  if (bucket == 192) return small ? uint32_t{CUBLASLT_MATMUL_TILE_128x64} : kTile192x64;
  return 0;
}

uint32_t tile_of(const CublasLt& lt, const cublasLtMatmulAlgo_t& algo) {
  uint32_t tile = 0;
  size_t written = 0;
  check_lt(lt, lt.algo_get(&algo, CUBLASLT_ALGO_CONFIG_TILE_ID, &tile, sizeof tile, &written),
           "read an algorithm");
  return tile;
}

const cublasLtMatmulAlgo_t& choose(const CublasLt& lt, uint32_t wanted,
                                   const cublasLtMatmulHeuristicResult_t* found, int count) {
  for (int i = 0; wanted != 0 && i < count; ++i) {
    if (tile_of(lt, found[i].algo) == wanted) return found[i].algo;
  }
  return found[0].algo;
}

}  // namespace

Matmul::Matmul(ops::DType act) : lt_(cublas_lt()), act_(data_type(act)) {
  check_lt(lt_, lt_.create(&handle_), "start cuBLASLt");
  try {
    workspace_ = make_device_memory(kWorkspaceBytes);
  } catch (...) {
    lt_.destroy(handle_);
    throw;
  }
}

Matmul::~Matmul() {
  plans_.clear();
  lt_.destroy(handle_);
}

Matmul::Plan& Matmul::plan_for(const MatmulParams& p) {
  const int64_t bucket = bucket_of(p.m);
  const bool with_bias = p.bias != nullptr;
  std::unique_ptr<Plan>& slot =
      plans_[{bucket, p.n, p.k, stride_of(p), p.float_output, with_bias, p.add}];
  if (slot) return *slot;
  auto plan = std::make_unique<Plan>(lt_);
  const cudaDataType_t out = p.float_output ? CUDA_R_32F : act_;
  const auto set = [&](cublasLtMatmulDescAttributes_t what, auto value) {
    check_lt(lt_, lt_.desc_set(plan->desc, what, &value, sizeof value), "describe a product");
  };
  check_lt(lt_, lt_.desc_create(&plan->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "describe a product");
  set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  if (with_bias) {
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, out);
    set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
  }
  check_lt(lt_,
           lt_.layout_create(&plan->w, act_, static_cast<uint64_t>(p.k), static_cast<uint64_t>(p.n),
                             p.k),
           "describe a matrix");
  const Layout x(lt_, act_, p.k, bucket, p.k);
  const Layout y(lt_, out, p.n, bucket, stride_of(p));
  Preference preference(lt_);
  preference.set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kWorkspaceBytes});
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, uint32_t{16});
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, uint32_t{16});
  preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, uint32_t{16});
  const uint32_t wanted = wanted_tile(p, bucket);
  cublasLtMatmulHeuristicResult_t found[kProposals];
  int count = 0;
  const cublasStatus_t status =
      lt_.heuristic(handle_, plan->desc, plan->w, x.get(), y.get(), y.get(), preference.get(),
                    wanted != 0 ? kProposals : 1, found, &count);
  const std::string shape = std::to_string(p.m) + " x " + std::to_string(p.n) + " x " +
                            std::to_string(p.k) + (with_bias ? " with bias" : "");
  check_lt(lt_, status, "choose an algorithm for a product of " + shape);
  if (count == 0) throw Error(ErrorCode::kDevice, "cuBLASLt has no algorithm for " + shape);
  plan->algo = choose(lt_, wanted, found, count);
  slot = std::move(plan);
  return *slot;
}

void Matmul::run(const MatmulParams& p, cudaStream_t stream) {
  if (p.m <= 0 || p.n <= 0) return;
  Plan& plan = plan_for(p);
  if (p.bias != nullptr) {
    check_lt(lt_,
             lt_.desc_set(plan.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &p.bias, sizeof p.bias),
             "describe a product");
  }
  const int64_t rows = rows_of(p);
  const Layout x(lt_, act_, p.k, rows, p.k);
  const Layout y(lt_, p.float_output ? CUDA_R_32F : act_, p.n, rows, stride_of(p));
  const float one = 1.0F;
  const float of_y = p.add ? 1.0F : 0.0F;
  check_lt(lt_,
           lt_.matmul(handle_, plan.desc, &one, p.w, plan.w, p.x, x.get(), &of_y, p.y, y.get(), p.y,
                      y.get(), &plan.algo, workspace_.get(), kWorkspaceBytes, stream),
           "matrix product");
}

}  // namespace treadle::cuda
