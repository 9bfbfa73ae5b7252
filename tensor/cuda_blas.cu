#include "tensor/cuda_blas.h"

#ifdef EIGENTRACE_WITH_CUDA
#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <map>
#include <string>

#include "tensor/dispatch.h"
#include "tensor/gemm_columns.cuh"
#include "tensor/gemm_outer.cuh"
#include "tensor/gemm_tensor_cores.cuh"
#include "tensor/gemm_waves.h"
#include "tensor/kernels/column_sum.cuh"

namespace eigentrace {
namespace {

constexpr size_t workspace_bytes = size_t{32} << 20;

void check(cublasStatus_t status, const char* call, const std::string& what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  fail(std::string(call) + " (" + what + "): " + cublasLtGetStatusString(status));
}

/// Everything that the choice of an algorithm depends on.
using Key = std::array<int64_t, 23>;

/// Descriptors and algorithm of a product; `found` false: cuBLASLt has none.
struct Plan {
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, from = nullptr, c = nullptr;
  cublasLtMatmulAlgo_t algorithm{};
  bool found = false;
};

struct Blas {
  cudaStream_t stream = nullptr;
  cublasLtHandle_t handle = nullptr;
  void* workspace = nullptr;
  int multiprocessors = 0;
  std::map<Key, Plan> plans;
};

template <class T>
constexpr cudaDataType_t type_of = sizeof(T) == 8   ? CUDA_R_64F
                                   : sizeof(T) == 2 ? CUDA_R_16BF
                                                    : CUDA_R_32F;

template <class T>
cublasComputeType_t compute_type(Precision precision) {
  if (sizeof(T) == 8) return CUBLAS_COMPUTE_64F;
  if (sizeof(T) == 2) return CUBLAS_COMPUTE_32F;
  if (precision == Precision::tf32) return CUBLAS_COMPUTE_32F_FAST_TF32;
  if (precision == Precision::bf16) return CUBLAS_COMPUTE_32F_FAST_16BF;
  return CUBLAS_COMPUTE_32F;
}

/// The alignment in bytes that the address is known to have, at most 256.
int64_t alignment(const void* address) {
  const auto bits = reinterpret_cast<uintptr_t>(address) | 256;
  return static_cast<int64_t>(bits & (~bits + 1));
}

template <class T, class Out>
std::string describe(const Product<T, Out>& p) {
  const auto turned = [](bool transposed) { return transposed ? "ᵀ" : ""; };
  return "[" + std::to_string(p.M) + ", " + std::to_string(p.K) + "]" + turned(p.a.transposed) + " [" +
         std::to_string(p.K) + ", " + std::to_string(p.N) + "]" + turned(p.b.transposed) + ", batch " +
         std::to_string(p.batch) + ", " + name_of(dtype_of<T>()) + (p.bias ? ", bias" : "");
}

template <class T>
cublasLtMatrixLayout_t layout(const Matrix<T>& x, int64_t rows, int64_t cols, int64_t batch, int64_t step,
                              const std::string& what) {
  cublasLtMatrixLayout_t result = nullptr;
  // A row-major matrix is the transpose of a column-major one with the same memory.
  const auto wide = static_cast<uint64_t>(x.transposed ? rows : cols);
  const auto high = static_cast<uint64_t>(x.transposed ? cols : rows);
  check(cublasLtMatrixLayoutCreate(&result, type_of<T>, wide, high, x.ld), "cublasLtMatrixLayoutCreate",
        what);
  if (batch > 1) {
    const auto count = static_cast<int32_t>(batch);
    check(cublasLtMatrixLayoutSetAttribute(result, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count),
          "cublasLtMatrixLayoutSetAttribute(batch count)", what);
    check(cublasLtMatrixLayoutSetAttribute(result, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &step,
                                           sizeof step),
          "cublasLtMatrixLayoutSetAttribute(batch stride)", what);
  }
  return result;
}

template <class Value>
void set(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute, Value value,
         const std::string& what) {
  check(cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof value),
        "cublasLtMatmulDescSetAttribute", what);
}

/// Asks cuBLASLt's heuristics for the algorithm. Its A is our B, so that its column-major result is our
/// row-major one.
template <class T, class Out>
Plan make_plan(const Blas& blas, const Product<T, Out>& p, cublasComputeType_t compute) {
  const std::string what = describe(p);
  Plan plan;
  check(cublasLtMatmulDescCreate(&plan.operation, compute, type_of<Arithmetic<T>>),
        "cublasLtMatmulDescCreate", what);
  set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSA, p.b.transposed ? CUBLAS_OP_T : CUBLAS_OP_N, what);
  set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSB, p.a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N, what);
  if (p.bias) {
    set(plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS, what);
    set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias, what);
  }
  plan.a = layout(p.b, p.K, p.N, p.batch, p.b_step, what);
  plan.b = layout(p.a, p.M, p.K, p.batch, p.a_step, what);
  plan.c = layout(p.c, p.M, p.N, p.batch, p.c_step, what);
  plan.from = p.from ? layout(Matrix<const Out>{p.from, p.from_ld}, p.M, p.N, 1, 0, what) : plan.c;

  cublasLtMatmulPreference_t preference = nullptr;
  check(cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate", what);
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    check(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value),
          "cublasLtMatmulPreferenceSetAttribute", what);
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{workspace_bytes});
  // A sum split along K goes through the workspace and is added in a fixed order, or is not split.
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
         static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<uint32_t>(alignment(p.b.data)));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<uint32_t>(alignment(p.a.data)));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
         static_cast<uint32_t>(alignment(p.from ? p.from : p.c.data)));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<uint32_t>(alignment(p.c.data)));
  std::array<cublasLtMatmulHeuristicResult_t, 8> answers{};
  int count = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(blas.handle, plan.operation, plan.a, plan.b, plan.from, plan.c,
                                     preference, static_cast<int>(answers.size()), answers.data(), &count);
  cublasLtMatmulPreferenceDestroy(preference);
  if (status != CUBLAS_STATUS_SUCCESS && status != CUBLAS_STATUS_NOT_SUPPORTED)
    check(status, "cublasLtMatmulAlgoGetHeuristic", what);
  if (status != CUBLAS_STATUS_SUCCESS || count == 0) return plan;
  const auto& answer = answers[answer_of(p, compute, answers.data(), count, blas.multiprocessors)];
  plan.found = answer.state == CUBLAS_STATUS_SUCCESS;
  plan.algorithm = answer.algo;
  return plan;
}

template <class T, class Out>
const Plan& plan_of(Blas& blas, const Product<T, Out>& p, cublasComputeType_t compute) {
  const Key key{p.M,
                p.N,
                p.K,
                p.a.ld,
                p.b.ld,
                p.c.ld,
                p.batch,
                p.a_step,
                p.b_step,
                p.c_step,
                p.a.transposed,
                p.b.transposed,
                p.bias != nullptr,
                p.beta != 0,
                compute,
                type_of<T>,
                type_of<Out>,
                alignment(p.a.data),
                alignment(p.b.data),
                alignment(p.c.data),
                alignment(p.bias),
                p.from_ld,
                alignment(p.from)};
  const auto found = blas.plans.find(key);
  return found != blas.plans.end() ? found->second
                                   : blas.plans.emplace(key, make_plan(blas, p, compute)).first->second;
}

/// True iff cuBLASLt has an algorithm; then it is started.
template <class T, class Out>
bool try_product(Blas& blas, const Product<T, Out>& p, cublasComputeType_t compute) {
  const Plan& plan = plan_of(blas, p, compute);
  if (!plan.found) return false;
  cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
  if (p.bias)
    status = cublasLtMatmulDescSetAttribute(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &p.bias,
                                            sizeof p.bias);
  if (status == CUBLAS_STATUS_SUCCESS)
    status = cublasLtMatmul(blas.handle, plan.operation, &p.alpha, p.b.data, plan.a, p.a.data, plan.b,
                            &p.beta, p.from ? p.from : p.c.data, plan.from, p.c.data, plan.c, &plan.algorithm,
                            blas.workspace, workspace_bytes, blas.stream);
  if (status != CUBLAS_STATUS_SUCCESS) check(status, "cublasLtMatmul", describe(p));
  return true;
}

/// C = beta C + bias: what is left of a product without the product.
template <class T, class Out>
struct StartFrom {
  Matrix<Out> c;
  int64_t M, N, step;
  Arithmetic<T> beta;
  const Out* bias;
  int64_t bias_stride;
  const Out* from;
  int64_t from_ld;
  ET_HD void operator()(int64_t i) const {
    const int64_t column = i % N, row = i / N % M;
    Out& element = c.data[i / N / M * step + (c.transposed ? column * c.ld + row : row * c.ld + column)];
    const Arithmetic<T> start = bias ? Arithmetic<T>(bias[column * bias_stride]) : Arithmetic<T>(0);
    const Out& before = from ? from[row * from_ld + column] : element;
    element = beta == 0 ? start : beta * Arithmetic<T>(before) + start;
  }
};
template <class T, class Out>
void start_from(Context& ctx, const Product<T, Out>& p) {
  for_each_index(
      ctx, p.M * p.N * p.batch,
      StartFrom<T, Out>{p.c, p.M, p.N, p.c_step, p.beta, p.bias, p.bias_stride, p.from, p.from_ld});
}

/// True iff cuBLASLt gives a float32 product to tensor cores: all rows are whole 16 bytes.
template <class T>
bool aligned_for_tensor_cores(const Product<T>& p) {
  const auto even = [](const auto& x, int64_t rows, int64_t cols, int64_t step) {
    return alignment(x.data) >= 16 && x.ld % 4 == 0 && step % 4 == 0 && (x.transposed ? rows : cols) % 4 == 0;
  };
  return even(p.a, p.M, p.K, p.a_step) && even(p.b, p.K, p.N, p.b_step) && even(p.c, p.M, p.N, p.c_step);
}

/// What tensor cores are asked for and cuBLASLt does not do (three parts) or does in float32's time (rows
/// that are no multiple of 16 bytes), if it is large enough to matter.
template <class T>
bool takes_own_kernel(const Context& ctx, const Product<T>& p) {
  constexpr int64_t large = int64_t{1} << 20, most = int64_t{1} << 30;
  if (sizeof(T) == 8 || ctx.precision == Precision::fp32 || p.c.transposed || p.bias_stride != 1)
    return false;
  if (p.M > most || p.N > most || p.K > most || p.batch > 65535 || p.M > 65535 * int64_t{tc_tile})
    return false;
  if (ctx.precision == Precision::tf32x3) return true;
  return !aligned_for_tensor_cores(p) && p.M * p.N * p.K * p.batch >= large;
}

void own_product(Context& ctx, const Product<float>& p) {
  const TcProduct product = tc_product(p, tc_round_up(p.K));
  const TcStore store{
      p.c.data, p.c.ld,   p.c_step, 0,
      p.alpha,  p.beta,   p.bias,   alignment(p.c.data) >= 8 && p.c.ld % 2 == 0 && p.c_step % 2 == 0,
      p.from,   p.from_ld};
  if (ctx.precision == Precision::tf32x3)
    tc_launch<3>(ctx, product, !p.a.transposed, p.b.transposed, p.batch, AsRead{}, store, nullptr);
  else
    tc_launch<1>(ctx, product, !p.a.transposed, p.b.transposed, p.batch, AsRead{}, store, nullptr);
}

/// True iff cuda_gemm_long may take a kernel of ours: operands as tensor cores take them, something to do.
bool long_may_be_ours(const Context& ctx, DType dtype, int64_t M, int64_t N, int64_t K) {
  return dtype == DType::f32 && ctx.precision != Precision::fp32 && M > 0 && N > 0 && K > 0 &&
         K < (int64_t{1} << 30) && std::max(M, N) < (int64_t{1} << 22);
}
/// True iff A is better read once for products and sums than once for each: bf16 products are over too soon
/// for that unless memory is the bound.
bool reads_once(const Context& ctx, int64_t M, int64_t N) {
  constexpr int64_t balance = 110;  // 2MN/(M+N) operations an element read, that many at the bound
  return ctx.precision == Precision::tf32 || M * N <= balance * (M + N);
}

/// True iff a sum over rows is better made by outer_wgmma, turned, than by cuBLASLt: 8192 × 128 from 4096
/// rows on an H200 in 53 µs instead of 62, the sum of the pieces included.
bool takes_turned(const Context& ctx, const Product<float>& p) {
  constexpr int64_t large = int64_t{1} << 31;
  return ctx.precision == Precision::tf32 && p.M * p.N * p.K >= large && wgmma_fits(p.N, p.M, p.K) &&
         wgmma_exists(ctx);
}

}  // namespace

template <class T, class Out>
void cuda_gemm(Context& ctx, const Product<T, Out>& product) {
  if (product.c.transposed && !product.bias) {  // Cᵀ = Bᵀ Aᵀ
    Product<T, Out> p = product;
    std::swap(p.M, p.N), std::swap(p.a_step, p.b_step);
    p.a = product.b.t(), p.b = product.a.t(), p.c = product.c.t();
    return cuda_gemm(ctx, p);
  }
  if (product.M <= 0 || product.N <= 0 || product.batch <= 0) return;
  if (product.K <= 0 || product.alpha == 0) return start_from(ctx, product);
  if constexpr (sizeof(T) == 4) {
    if (const int64_t columns = count_last_columns(ctx, product)) {
      Product<T> first = product;
      first.N = product.N - columns;
      last_columns(ctx, product, columns);  // first: the other product's results drive x out of the cache
      return cuda_gemm(ctx, first);
    }
    if (takes_own_kernel(ctx, product)) return own_product(ctx, product);
    const int64_t multiprocessors = static_cast<const Blas*>(ctx.blas())->multiprocessors;
    if (const int64_t rows = rows_of_whole_waves(ctx, product, multiprocessors)) {
      cuda_gemm(ctx, rows_of(product, 0, rows));
      return cuda_gemm(ctx, rows_of(product, rows, product.M - rows));
    }
  }
  Blas& blas = *static_cast<Blas*>(ctx.blas());
  const cublasComputeType_t wanted = compute_type<T>(ctx.precision);
  const bool fusable = product.bias_stride == 1 && !product.c.transposed;
  if ((!product.bias || fusable) && try_product(blas, product, wanted)) return;
  if (product.bias) {  // no such epilogue: the bias first, the product on top
    start_from(ctx, product);
    Product<T, Out> p = product;
    p.bias = nullptr, p.beta = 1;
    return cuda_gemm(ctx, p);
  }
  // Operands that tensor cores cannot take: in float32, which is never less precise.
  if (sizeof(T) == 4 && wanted != CUBLAS_COMPUTE_32F && try_product(blas, product, CUBLAS_COMPUTE_32F))
    return;
  fail("cublasLtMatmulAlgoGetHeuristic (" + describe(product) + "): no algorithm");
}
template void cuda_gemm(Context&, const Product<float>&);
template void cuda_gemm(Context&, const Product<double>&);
template void cuda_gemm(Context&, const Product<BFloat16>&);

int64_t cuda_long_scratch(const Context& ctx, DType dtype, int64_t M, int64_t N, int64_t K, bool sums) {
  int64_t blas = sums ? kernels::column_sum_pieces(K) * M : 0;
  if (dtype == DType::f32) blas = std::max(blas, last_rows_scratch(count_last_rows(ctx, M, N, K), N, K));
  if (!long_may_be_ours(ctx, dtype, M, N, K)) return blas;
  return std::max({blas, tc_long_scratch(M, N, K, sums), outer_scratch(M, N, K, sums)});
}

template <class T, class Out>
void cuda_gemm_long(Context& ctx, const Product<T, Out>& product, std::type_identity_t<Out>* sums,
                    int64_t sums_stride, std::type_identity_t<Out>* scratch) {
  const int64_t M = product.M, N = product.N, K = product.K;
  if (M <= 0) return;
  if constexpr (sizeof(T) == 4)
    if (long_may_be_ours(ctx, DType::f32, M, N, K)) {
      if (ctx.precision == Precision::tf32x3)
        return tc_long<3>(ctx, product, AsRead{}, sums, sums_stride, false, scratch);
      const bool aligned = aligned_for_tensor_cores(product);
      const bool once = sums ? reads_once(ctx, M, N) : takes_turned(ctx, product);
      if (outer_takes(product) && (!aligned || once))
        return outer_long(ctx, product, sums, sums_stride, scratch);
      if (!aligned) return tc_long<1>(ctx, product, AsRead{}, sums, sums_stride, false, scratch);
    }
  if (sums)
    kernels::column_sum(ctx, Rows<T>{const_cast<T*>(product.a.data), K, M, product.a.ld}, sums, sums_stride,
                        scratch);
  if constexpr (sizeof(T) == 4)
    if (const int64_t rows = count_last_rows(ctx, M, N, K);
        rows > 0 && product.a.transposed && !product.b.transposed && rows_of_vectors(product.b)) {
      Product<T> first = product;
      first.M = M - rows;
      last_rows(ctx, product, rows, scratch);
      return cuda_gemm(ctx, first);
    }
  cuda_gemm(ctx, product);
}
template void cuda_gemm_long(Context&, const Product<float>&, float*, int64_t, float*);
template void cuda_gemm_long(Context&, const Product<double>&, double*, int64_t, double*);
template void cuda_gemm_long(Context&, const Product<BFloat16, float>&, float*, int64_t, float*);

void* make_cuda_blas(void* stream, int device) {
  auto* blas = new Blas;
  blas->stream = static_cast<cudaStream_t>(stream);
  ET_CUDA(cudaMalloc(&blas->workspace, workspace_bytes));
  ET_CUDA(cudaDeviceGetAttribute(&blas->multiprocessors, cudaDevAttrMultiProcessorCount, device));
  check(cublasLtCreate(&blas->handle), "cublasLtCreate", "Context");
  return blas;
}

void destroy_cuda_blas(void* opaque) {
  auto* blas = static_cast<Blas*>(opaque);
  for (auto& [key, plan] : blas->plans) {
    cublasLtMatmulDescDestroy(plan.operation);
    if (plan.from != plan.c) cublasLtMatrixLayoutDestroy(plan.from);
    for (cublasLtMatrixLayout_t each : {plan.a, plan.b, plan.c}) cublasLtMatrixLayoutDestroy(each);
  }
  cublasLtDestroy(blas->handle);
  cudaFree(blas->workspace);
  delete blas;
}

}  // namespace eigentrace
#endif
