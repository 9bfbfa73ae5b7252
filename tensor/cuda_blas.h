#pragma once
// Matrix products on CUDA, through cuBLASLt. For kernels/*.cu only.
#ifdef EIGENTRACE_WITH_CUDA
#include <type_traits>

#include "tensor/blas.h"
#include "tensor/context.h"

namespace eigentrace {

/// C = alpha A B + beta F + bias for each of `batch` products, F = C unless `from` says where else. A [M,K],
/// B [K,N], C [M,N], each in either layout; the i-th starts i steps further (a step of 0: the same operand
/// for all). bias [N] is added to every row. beta = 0 overwrites whatever C held. float32 products are made
/// as ctx.precision says. bf16 operands: float32 sums, C bf16 or float32.
template <class T, class Out = T>
struct Product {
  int64_t M, N, K;
  Matrix<const T> a, b;
  Matrix<Out> c;
  Arithmetic<T> alpha = 1, beta = 0;
  const Out* bias = nullptr;
  int64_t bias_stride = 1;
  int64_t batch = 1, a_step = 0, b_step = 0, c_step = 0;
  const Out* from = nullptr;  ///< F [M,N], rows from_ld apart; then one product, C not transposed, no bias
  int64_t from_ld = 0;
};

/// The same bits each time on one kind of GPU: no atomics, a fixed workspace, the algorithm a function of the
/// shapes. Nothing here is illegal while a stream is captured once the same product has run before. cuBLASLt,
/// but for what tensor cores are asked for and it cannot do well (takes_own_kernel in the .cu); float32 is
/// cut first (gemm_waves.h, gemm_columns.cuh). Error: cuBLASLt refuses.
template <class T, class Out>
void cuda_gemm(Context& ctx, const Product<T, Out>& product);

/// Elements of scratch, of the type of C, that cuda_gemm_long needs for operands of `dtype`.
int64_t cuda_long_scratch(const Context& ctx, DType dtype, int64_t M, int64_t N, int64_t K, bool sums);
/// As cuda_gemm, for few outputs and a long sum (K = batch · time). One product, alpha 1, beta 0, no bias.
/// sums, if not null: [M], Σ_k A(i, k), sums_stride apart; then A must be transposed (its columns are dense),
/// and where tensor cores make the products A is read once for both.
template <class T, class Out>
void cuda_gemm_long(Context& ctx, const Product<T, Out>& product, std::type_identity_t<Out>* sums,
                    int64_t sums_stride, std::type_identity_t<Out>* scratch);

/// What Context::blas() points to: handle, workspace and the algorithms chosen so far.
void* make_cuda_blas(void* stream, int device);
void destroy_cuda_blas(void* blas);

}  // namespace eigentrace
#endif
