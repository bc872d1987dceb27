// cuBLASLt, loaded at run time: a machine without a GPU needs no part of it.
#pragma once

#include <memory>

#include <cublasLt.h>

namespace treadle::cuda {

/// The functions used, by their own names.
struct CublasLt {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&cublasLtMatmulAlgoConfigGetAttribute) algo_get;
  decltype(&cublasLtGetStatusString) status_string;
};

/// The library of the version this was compiled for: one that the process has loaded already (an
/// imported torch), one on the loader's path, or the PyPI package nvidia-cublas beside this
/// library. Loaded once. Throws Error(kUnsupported) that says where it was looked for.
const CublasLt& cublas_lt();

}  // namespace treadle::cuda
