#pragma once
// The part of cuBLAS that this house uses, computed by loops: results are rounded as float32 products are, so
// TF32 and bf16 modes are exact here.
#include "tests/simt/cuda_runtime.h"

enum cublasStatus_t { CUBLAS_STATUS_SUCCESS = 0, CUBLAS_STATUS_INVALID_VALUE = 7 };
struct SimtBlas {
  cudaStream_t stream = nullptr;
};
using cublasHandle_t = SimtBlas*;
inline cublasStatus_t cublasCreate(cublasHandle_t* h) { return *h = new SimtBlas, CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasDestroy(cublasHandle_t h) { return delete h, CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasSetStream(cublasHandle_t h, cudaStream_t s) {
  return h->stream = s, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasSetWorkspace(cublasHandle_t, void*, size_t) { return CUBLAS_STATUS_SUCCESS; }
