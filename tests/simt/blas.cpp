#include <cblas.h>

#include "tests/simt/cublasLt.h"

namespace {

template <class T>
void product(const SimtMatmul& operation, double alpha, const void* a, const SimtLayout& la, const void* b,
             const SimtLayout& lb, double beta, void* c, const SimtLayout& lc) {
  const auto turned = [](cublasOperation_t o) { return o == CUBLAS_OP_T ? CblasTrans : CblasNoTrans; };
  const auto M = static_cast<int>(lc.rows), N = static_cast<int>(lc.cols),
             K = static_cast<int>(operation.a == CUBLAS_OP_T ? la.rows : la.cols);
  for (int32_t i = 0; i < lc.batch; ++i) {
    const T* ai = static_cast<const T*>(a) + i * la.step;
    const T* bi = static_cast<const T*>(b) + i * lb.step;
    T* ci = static_cast<T*>(c) + i * lc.step;
    const auto lda = static_cast<int>(la.ld), ldb = static_cast<int>(lb.ld), ldc = static_cast<int>(lc.ld);
    if constexpr (sizeof(T) == 4)
      cblas_sgemm(CblasColMajor, turned(operation.a), turned(operation.b), M, N, K, static_cast<float>(alpha),
                  ai, lda, bi, ldb, static_cast<float>(beta), ci, ldc);
    else
      cblas_dgemm(CblasColMajor, turned(operation.a), turned(operation.b), M, N, K, alpha, ai, lda, bi, ldb,
                  beta, ci, ldc);
    if (operation.epilogue == CUBLASLT_EPILOGUE_BIAS)
      for (int64_t column = 0; column < N; ++column)
        for (int64_t row = 0; row < M; ++row)
          ci[column * lc.ld + row] += static_cast<const T*>(operation.bias)[row];
  }
}

}  // namespace

cublasStatus_t simt_matmul(const SimtMatmul& operation, double alpha, const void* a, const SimtLayout& la,
                           const void* b, const SimtLayout& lb, double beta, void* c, const SimtLayout& lc,
                           cudaStream_t stream) {
  const uint64_t K = operation.a == CUBLAS_OP_T ? la.rows : la.cols;
  const bool fits = (operation.b == CUBLAS_OP_T ? lb.cols : lb.rows) == K &&
                    (operation.a == CUBLAS_OP_T ? la.cols : la.rows) == lc.rows &&
                    (operation.b == CUBLAS_OP_T ? lb.rows : lb.cols) == lc.cols && la.batch == lc.batch &&
                    lb.batch == lc.batch && la.type == lc.type && lb.type == lc.type &&
                    operation.type == lc.type;
  if (!fits) return CUBLAS_STATUS_INVALID_VALUE;
  simt_enqueue(stream, [=] {
    const simt::DeviceAccess access;
    if (lc.type == CUDA_R_32F)
      product<float>(operation, alpha, a, la, b, lb, beta, c, lc);
    else
      product<double>(operation, alpha, a, la, b, lb, beta, c, lc);
  });
  return CUBLAS_STATUS_SUCCESS;
}
