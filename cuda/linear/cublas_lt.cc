#include "linear/cublas_lt.h"

#include <dlfcn.h>

#include <string>
#include <vector>

#include "ops/cuda.h"
#include "treadle/error.h"

namespace treadle::ops {

std::string cuda_library() { return "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR); }

}  // namespace treadle::ops

namespace treadle::cuda {
namespace {

/// Folders of the PyPI package, seen from site-packages/treadle/, and of the toolkit.
std::vector<std::string> candidates() {
  std::vector<std::string> names{ops::cuda_library()};
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&cublas_lt), &info) != 0 && info.dli_fname != nullptr) {
    std::string folder = info.dli_fname;
    folder.erase(folder.find_last_of('/') == std::string::npos ? 0 : folder.find_last_of('/'));
    if (folder.empty()) folder.assign(1, '.');
    const std::string major = std::to_string(CUBLAS_VER_MAJOR);
    names.push_back(folder + "/../nvidia/cu" + major + "/lib/" + ops::cuda_library());
    names.push_back(folder + "/../nvidia/cublas/lib/" + ops::cuda_library());
  }
  names.push_back("/usr/local/cuda/lib64/" + ops::cuda_library());
  return names;
}

void* open_library() {
  std::string tried;
  for (const std::string& name : candidates()) {
    if (void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)) return handle;
    tried += (tried.empty() ? "" : ", ") + name;
  }
  const std::string package = CUBLAS_VER_MAJOR >= 13
                                  ? "nvidia-cublas"
                                  : "nvidia-cublas-cu" + std::to_string(CUBLAS_VER_MAJOR);
  throw Error(ErrorCode::kUnsupported, ops::cuda_library() + " was not found (tried " + tried +
                                           "); install it with `pip install " + package +
                                           "`, or the CUDA toolkit");
}

template <class F>
void find(void* library, const char* name, F& function) {
  function = reinterpret_cast<F>(dlsym(library, name));
  if (function == nullptr) {
    throw Error(ErrorCode::kUnsupported,
                "CUDA: " + ops::cuda_library() + " has no function " + name);
  }
}

CublasLt load() {
  void* library = open_library();  // stays loaded for the life of the process
  CublasLt lt{};
  find(library, "cublasLtCreate", lt.create);
  find(library, "cublasLtDestroy", lt.destroy);
  find(library, "cublasLtMatmul", lt.matmul);
  find(library, "cublasLtMatmulDescCreate", lt.desc_create);
  find(library, "cublasLtMatmulDescDestroy", lt.desc_destroy);
  find(library, "cublasLtMatmulDescSetAttribute", lt.desc_set);
  find(library, "cublasLtMatrixLayoutCreate", lt.layout_create);
  find(library, "cublasLtMatrixLayoutDestroy", lt.layout_destroy);
  find(library, "cublasLtMatmulPreferenceCreate", lt.preference_create);
  find(library, "cublasLtMatmulPreferenceDestroy", lt.preference_destroy);
  find(library, "cublasLtMatmulPreferenceSetAttribute", lt.preference_set);
  find(library, "cublasLtMatmulAlgoGetHeuristic", lt.heuristic);
  find(library, "cublasLtMatmulAlgoConfigGetAttribute", lt.algo_get);
  find(library, "cublasLtGetStatusString", lt.status_string);
  return lt;
}

}  // namespace

const CublasLt& cublas_lt() {
  static const CublasLt lt = load();
  return lt;
}

}  // namespace treadle::cuda
