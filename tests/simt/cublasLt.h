#pragma once
// The part of cuBLASLt that this house uses, computed by CBLAS. Under TF32 and bf16 the operands are rounded
// to the nearest, as the fragments of tensor/mma.h are, and products and sums are float32's; bf16
// operands become float32 first, a bf16 result is rounded last. float64 has no bias epilogues, so that the
// way without them is tested too.
#include "tests/simt/cuda_runtime.h"

enum cublasStatus_t {
  CUBLAS_STATUS_SUCCESS = 0,
  CUBLAS_STATUS_INVALID_VALUE = 7,
  CUBLAS_STATUS_NOT_SUPPORTED = 15
};
inline const char* cublasLtGetStatusString(cublasStatus_t s) {
  return s == CUBLAS_STATUS_SUCCESS         ? "success"
         : s == CUBLAS_STATUS_INVALID_VALUE ? "invalid value"
                                            : "not supported";
}
enum cudaDataType_t { CUDA_R_32F = 0, CUDA_R_64F = 1, CUDA_R_16BF = 14 };
enum cublasComputeType_t {
  CUBLAS_COMPUTE_32F = 68,
  CUBLAS_COMPUTE_32F_FAST_16BF = 75,
  CUBLAS_COMPUTE_32F_FAST_TF32 = 77,
  CUBLAS_COMPUTE_64F = 70
};
enum cublasOperation_t { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1 };
enum cublasLtEpilogue_t { CUBLASLT_EPILOGUE_DEFAULT = 1, CUBLASLT_EPILOGUE_BIAS = 4 };
enum cublasLtMatmulDescAttributes_t {
  CUBLASLT_MATMUL_DESC_TRANSA,
  CUBLASLT_MATMUL_DESC_TRANSB,
  CUBLASLT_MATMUL_DESC_EPILOGUE,
  CUBLASLT_MATMUL_DESC_BIAS_POINTER
};
enum cublasLtMatrixLayoutAttribute_t {
  CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
  CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET
};
enum cublasLtMatmulPreferenceAttributes_t {
  CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
  CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES
};
enum cublasLtReductionScheme_t {
  CUBLASLT_REDUCTION_SCHEME_NONE = 0,
  CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE = 2
};

enum cublasLtMatmulAlgoConfigAttributes_t { CUBLASLT_ALGO_CONFIG_TILE_ID, CUBLASLT_ALGO_CONFIG_SPLITK_NUM };
enum cublasLtMatmulTile_t {
  CUBLASLT_MATMUL_TILE_64x64 = 15,
  CUBLASLT_MATMUL_TILE_128x128 = 20,
  CUBLASLT_MATMUL_TILE_256x128 = 24
};

struct SimtBlas {};
using cublasLtHandle_t = SimtBlas*;
struct SimtMatmul {
  cublasOperation_t a = CUBLAS_OP_N, b = CUBLAS_OP_N;
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const void* bias = nullptr;
  cudaDataType_t type = CUDA_R_32F;
  cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
};
using cublasLtMatmulDesc_t = SimtMatmul*;
struct SimtLayout {
  cudaDataType_t type;
  uint64_t rows, cols;
  int64_t ld;
  int32_t batch = 1;
  int64_t step = 0;
};
using cublasLtMatrixLayout_t = SimtLayout*;
struct cublasLtMatmulAlgo_t {
  int32_t tile, split;
};
struct cublasLtMatmulHeuristicResult_t {
  cublasLtMatmulAlgo_t algo;
  size_t workspaceSize;
  cublasStatus_t state;
  float wavesCount;
};
struct SimtPreference {};
using cublasLtMatmulPreference_t = SimtPreference*;

/// C = alpha op(A) op(B) + beta C (+ bias), column-major; in blas.cpp.
cublasStatus_t simt_matmul(const SimtMatmul& operation, double alpha, const void* a, const SimtLayout& la,
                           const void* b, const SimtLayout& lb, double beta, void* c, const SimtLayout& lc,
                           cudaStream_t stream);

inline cublasStatus_t cublasLtCreate(cublasLtHandle_t* h) { return *h = new SimtBlas, CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasLtDestroy(cublasLtHandle_t h) { return delete h, CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* d, cublasComputeType_t compute,
                                               cudaDataType_t type) {
  *d = new SimtMatmul;
  (*d)->type = type, (*d)->compute = compute;
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) {
  return delete d, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d,
                                                     cublasLtMatmulDescAttributes_t what, const void* value,
                                                     size_t bytes) {
  switch (what) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return std::memcpy(&d->a, value, bytes), CUBLAS_STATUS_SUCCESS;
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return std::memcpy(&d->b, value, bytes), CUBLAS_STATUS_SUCCESS;
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return std::memcpy(&d->epilogue, value, bytes), CUBLAS_STATUS_SUCCESS;
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return std::memcpy(&d->bias, value, bytes), CUBLAS_STATUS_SUCCESS;
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}
inline cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* l, cudaDataType_t type,
                                                 uint64_t rows, uint64_t cols, int64_t ld) {
  if (ld < static_cast<int64_t>(rows)) return CUBLAS_STATUS_INVALID_VALUE;
  return *l = new SimtLayout{type, rows, cols, ld}, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) {
  return delete l, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l,
                                                       cublasLtMatrixLayoutAttribute_t what,
                                                       const void* value, size_t bytes) {
  if (what == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT)
    std::memcpy(&l->batch, value, bytes);
  else
    std::memcpy(&l->step, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* p) {
  return *p = new SimtPreference, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) {
  return delete p, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t,
                                                           cublasLtMatmulPreferenceAttributes_t, const void*,
                                                           size_t) {
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t d,
                                                     cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                                     cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                                     cublasLtMatmulPreference_t, int room,
                                                     cublasLtMatmulHeuristicResult_t* result, int* count) {
  const bool has = d->epilogue == CUBLASLT_EPILOGUE_DEFAULT || d->type == CUDA_R_32F;
  // The second is one that the library can name but not do: whoever starts it gets an error.
  const cublasLtMatmulHeuristicResult_t answers[] = {
      {{CUBLASLT_MATMUL_TILE_64x64, 1}, 0, CUBLAS_STATUS_SUCCESS, 1},
      {{CUBLASLT_MATMUL_TILE_256x128, 1}, 0, CUBLAS_STATUS_NOT_SUPPORTED, 1},
      {{CUBLASLT_MATMUL_TILE_128x128, 1}, 0, CUBLAS_STATUS_SUCCESS, 1}};
  *count = 0;
  if (!has) return CUBLAS_STATUS_NOT_SUPPORTED;
  for (const auto& answer : answers)
    if (*count < room) result[(*count)++] = answer;
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t* algorithm,
                                                           cublasLtMatmulAlgoConfigAttributes_t what,
                                                           void* value, size_t bytes, size_t* written) {
  *written = bytes;
  std::memcpy(value, what == CUBLASLT_ALGO_CONFIG_TILE_ID ? &algorithm->tile : &algorithm->split, bytes);
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t d, const void* alpha,
                                     const void* a, cublasLtMatrixLayout_t la, const void* b,
                                     cublasLtMatrixLayout_t lb, const void* beta, const void* c,
                                     cublasLtMatrixLayout_t lf, void* result, cublasLtMatrixLayout_t lc,
                                     const cublasLtMatmulAlgo_t* algorithm, void*, size_t,
                                     cudaStream_t stream) {
  if (algorithm->tile == CUBLASLT_MATMUL_TILE_256x128) return CUBLAS_STATUS_INVALID_VALUE;
  if (c != result) {  // beta multiplies another matrix: copied, then as if it were the result
    if (lf->rows != lc->rows || lf->cols != lc->cols || lf->type != lc->type || lf->batch != 1 ||
        lc->batch != 1)
      return CUBLAS_STATUS_INVALID_VALUE;
    simt_enqueue(stream,
                 [from = static_cast<const char*>(c), to = static_cast<char*>(result), f = *lf, t = *lc] {
                   const simt::DeviceAccess access;
                   const uint64_t bytes = t.type == CUDA_R_32F ? 4 : t.type == CUDA_R_64F ? 8 : 2;
                   for (uint64_t j = 0; j < t.cols; ++j)
                     std::memcpy(to + j * static_cast<uint64_t>(t.ld) * bytes,
                                 from + j * static_cast<uint64_t>(f.ld) * bytes, t.rows * bytes);
                 });
  }
  const auto scalar = [&](const void* p) {
    return d->type == CUDA_R_32F ? *static_cast<const float*>(p) : *static_cast<const double*>(p);
  };
  return simt_matmul(*d, scalar(alpha), a, *la, b, *lb, scalar(beta), result, *lc, stream);
}
