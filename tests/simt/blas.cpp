#include <cblas.h>

#include <vector>

#include "tensor/bfloat16.h"
#include "tests/simt/cublasLt.h"

namespace {

/// The matrix rounded to the nearest number of `bits` bits behind the point, ties away from zero (TF32) or to
/// even (bf16), in memory that lives as long as `room`.
const float* rounded(const float* x, const SimtLayout& layout, cublasComputeType_t compute,
                     std::vector<float>& room) {
  if (compute != CUBLAS_COMPUTE_32F_FAST_TF32 && compute != CUBLAS_COMPUTE_32F_FAST_16BF) return x;
  const auto ld = static_cast<size_t>(layout.ld);
  room.assign(ld * layout.cols, 0);
  for (size_t column = 0; column < layout.cols; ++column)
    for (size_t row = 0; row < layout.rows; ++row) {
      uint32_t bits = __float_as_uint(x[column * ld + row]);
      if ((bits & 0x7F800000u) != 0x7F800000u)
        bits = compute == CUBLAS_COMPUTE_32F_FAST_TF32 ? (bits + 0x1000u) & 0xFFFFE000u
                                                       : (bits + 0x7FFFu + (bits >> 16 & 1)) & 0xFFFF0000u;
      room[column * ld + row] = __uint_as_float(bits);
    }
  return room.data();
}

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
    if constexpr (sizeof(T) == 4) {
      std::vector<float> room[2];
      cblas_sgemm(CblasColMajor, turned(operation.a), turned(operation.b), M, N, K, static_cast<float>(alpha),
                  rounded(ai, la, operation.compute, room[0]), lda,
                  rounded(bi, lb, operation.compute, room[1]), ldb, static_cast<float>(beta), ci, ldc);
    } else
      cblas_dgemm(CblasColMajor, turned(operation.a), turned(operation.b), M, N, K, alpha, ai, lda, bi, ldb,
                  beta, ci, ldc);
    if (operation.epilogue == CUBLASLT_EPILOGUE_BIAS)
      for (int64_t column = 0; column < N; ++column)
        for (int64_t row = 0; row < M; ++row)
          ci[column * lc.ld + row] += static_cast<const T*>(operation.bias)[row];
  }
}

using eigentrace::BFloat16;

size_t extent(const SimtLayout& l) {
  return static_cast<size_t>((l.batch - 1) * l.step + static_cast<int64_t>(l.cols - 1) * l.ld) + l.rows;
}
std::vector<float> widened(const void* x, size_t n) {
  const auto* from = static_cast<const BFloat16*>(x);
  return {from, from + n};
}

/// bf16 operands; the result in float32 or bf16, the bias of the result's type.
void product_of_bf16(SimtMatmul operation, double alpha, const void* a, const SimtLayout& la, const void* b,
                     const SimtLayout& lb, double beta, void* c, const SimtLayout& lc) {
  const std::vector<float> x = widened(a, extent(la)), y = widened(b, extent(lb));
  if (lc.type == CUDA_R_32F) return product<float>(operation, alpha, x.data(), la, y.data(), lb, beta, c, lc);
  std::vector<float> z = widened(c, extent(lc)), bias;
  if (operation.epilogue == CUBLASLT_EPILOGUE_BIAS)
    bias = widened(operation.bias, lc.rows), operation.bias = bias.data();
  product<float>(operation, alpha, x.data(), la, y.data(), lb, beta, z.data(), lc);
  auto* to = static_cast<BFloat16*>(c);
  for (int32_t i = 0; i < lc.batch; ++i)
    for (uint64_t column = 0; column < lc.cols; ++column)
      for (uint64_t row = 0; row < lc.rows; ++row) {
        const int64_t at = i * lc.step + static_cast<int64_t>(column) * lc.ld + static_cast<int64_t>(row);
        to[at] = z[static_cast<size_t>(at)];
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
                    lb.batch == lc.batch && la.type == lb.type &&
                    (la.type == lc.type || (la.type == CUDA_R_16BF && lc.type == CUDA_R_32F)) &&
                    operation.type == (la.type == CUDA_R_16BF ? CUDA_R_32F : la.type);
  if (!fits) return CUBLAS_STATUS_INVALID_VALUE;
  simt_enqueue(stream, [=] {
    const simt::DeviceAccess access;
    if (la.type == CUDA_R_16BF)
      product_of_bf16(operation, alpha, a, la, b, lb, beta, c, lc);
    else if (lc.type == CUDA_R_32F)
      product<float>(operation, alpha, a, la, b, lb, beta, c, lc);
    else
      product<double>(operation, alpha, a, la, b, lb, beta, c, lc);
  });
  return CUBLAS_STATUS_SUCCESS;
}
