#include "tensor/cuda_blas.h"

#ifdef EIGENTRACE_WITH_CUDA
#include <cublasLt.h>

#include <array>
#include <map>
#include <string>

#include "tensor/dispatch.h"

namespace eigentrace {
namespace {

constexpr size_t workspace_bytes = size_t{32} << 20;

void check(cublasStatus_t status, const char* call, const std::string& what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  fail(std::string(call) + " (" + what + "): " + cublasLtGetStatusString(status));
}

/// Everything that the choice of an algorithm depends on.
using Key = std::array<int64_t, 19>;

/// Descriptors and algorithm of a product; `found` false: cuBLASLt has none.
struct Plan {
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
  cublasLtMatmulAlgo_t algorithm{};
  bool found = false;
};

struct Blas {
  cudaStream_t stream = nullptr;
  cublasLtHandle_t handle = nullptr;
  void* workspace = nullptr;
  std::map<Key, Plan> plans;
};

template <class T>
constexpr cudaDataType_t type_of = sizeof(T) == 8 ? CUDA_R_64F : CUDA_R_32F;

template <class T>
cublasComputeType_t compute_type(Precision precision) {
  if (sizeof(T) == 8) return CUBLAS_COMPUTE_64F;
  if (precision == Precision::tf32) return CUBLAS_COMPUTE_32F_FAST_TF32;
  if (precision == Precision::bf16) return CUBLAS_COMPUTE_32F_FAST_16BF;
  return CUBLAS_COMPUTE_32F;
}

/// The alignment in bytes that the address is known to have, at most 256.
int64_t alignment(const void* address) {
  const auto bits = reinterpret_cast<uintptr_t>(address) | 256;
  return static_cast<int64_t>(bits & (~bits + 1));
}

template <class T>
std::string describe(const Product<T>& p) {
  const auto turned = [](bool transposed) { return transposed ? "ᵀ" : ""; };
  return "[" + std::to_string(p.M) + ", " + std::to_string(p.K) + "]" + turned(p.a.transposed) + " [" +
         std::to_string(p.K) + ", " + std::to_string(p.N) + "]" + turned(p.b.transposed) + ", batch " +
         std::to_string(p.batch) + (sizeof(T) == 8 ? ", f64" : ", f32") + (p.bias ? ", bias" : "");
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
template <class T>
Plan make_plan(const Blas& blas, const Product<T>& p, cublasComputeType_t compute) {
  const std::string what = describe(p);
  Plan plan;
  check(cublasLtMatmulDescCreate(&plan.operation, compute, type_of<T>), "cublasLtMatmulDescCreate", what);
  set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSA, p.b.transposed ? CUBLAS_OP_T : CUBLAS_OP_N, what);
  set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSB, p.a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N, what);
  if (p.bias) {
    set(plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS, what);
    set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias, what);
  }
  plan.a = layout(p.b, p.K, p.N, p.batch, p.b_step, what);
  plan.b = layout(p.a, p.M, p.K, p.batch, p.a_step, what);
  plan.c = layout(p.c, p.M, p.N, p.batch, p.c_step, what);

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
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<uint32_t>(alignment(p.c.data)));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<uint32_t>(alignment(p.c.data)));
  cublasLtMatmulHeuristicResult_t result{};
  int count = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      blas.handle, plan.operation, plan.a, plan.b, plan.c, plan.c, preference, 1, &result, &count);
  cublasLtMatmulPreferenceDestroy(preference);
  if (status != CUBLAS_STATUS_SUCCESS && status != CUBLAS_STATUS_NOT_SUPPORTED)
    check(status, "cublasLtMatmulAlgoGetHeuristic", what);
  plan.found = status == CUBLAS_STATUS_SUCCESS && count > 0 && result.state == CUBLAS_STATUS_SUCCESS;
  plan.algorithm = result.algo;
  return plan;
}

template <class T>
const Plan& plan_of(Blas& blas, const Product<T>& p, cublasComputeType_t compute) {
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
                alignment(p.a.data),
                alignment(p.b.data),
                alignment(p.c.data),
                alignment(p.bias)};
  const auto found = blas.plans.find(key);
  return found != blas.plans.end() ? found->second
                                   : blas.plans.emplace(key, make_plan(blas, p, compute)).first->second;
}

/// True iff cuBLASLt has an algorithm; then it is started.
template <class T>
bool try_product(Blas& blas, const Product<T>& p, cublasComputeType_t compute) {
  const Plan& plan = plan_of(blas, p, compute);
  if (!plan.found) return false;
  cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
  if (p.bias)
    status = cublasLtMatmulDescSetAttribute(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &p.bias,
                                            sizeof p.bias);
  if (status == CUBLAS_STATUS_SUCCESS)
    status = cublasLtMatmul(blas.handle, plan.operation, &p.alpha, p.b.data, plan.a, p.a.data, plan.b,
                            &p.beta, p.c.data, plan.c, p.c.data, plan.c, &plan.algorithm, blas.workspace,
                            workspace_bytes, blas.stream);
  if (status != CUBLAS_STATUS_SUCCESS) check(status, "cublasLtMatmul", describe(p));
  return true;
}

/// C = beta C + bias: what is left of a product without the product.
template <class T>
struct StartFrom {
  Matrix<T> c;
  int64_t M, N, step;
  T beta;
  const T* bias;
  int64_t bias_stride;
  ET_HD void operator()(int64_t i) const {
    const int64_t column = i % N, row = i / N % M;
    T& element = c.data[i / N / M * step + (c.transposed ? column * c.ld + row : row * c.ld + column)];
    const T start = bias ? bias[column * bias_stride] : T(0);
    element = beta == 0 ? start : beta * element + start;
  }
};
template <class T>
void start_from(Context& ctx, const Product<T>& p) {
  for_each_index(ctx, p.M * p.N * p.batch,
                 StartFrom<T>{p.c, p.M, p.N, p.c_step, p.beta, p.bias, p.bias_stride});
}

/// y[i][j] = Σ_p pieces[p][i][j], in order.
template <class T>
struct SumPieces {
  const T* pieces;
  int64_t count, M, N;
  Matrix<T> y;
  ET_HD void operator()(int64_t i) const {
    T sum = 0;
    const T* at = pieces + i;
#ifdef __CUDA_ARCH__
#pragma unroll 8
#endif
    for (int64_t p = 0; p < count; ++p, at += M * N) sum += *at;
    y.data[i / N * y.ld + i % N] = sum;
  }
};

}  // namespace

template <class T>
void cuda_gemm(Context& ctx, const Product<T>& product) {
  if (product.c.transposed && !product.bias) {  // Cᵀ = Bᵀ Aᵀ
    Product<T> p = product;
    std::swap(p.M, p.N), std::swap(p.a_step, p.b_step);
    p.a = product.b.t(), p.b = product.a.t(), p.c = product.c.t();
    return cuda_gemm(ctx, p);
  }
  if (product.M <= 0 || product.N <= 0 || product.batch <= 0) return;
  if (product.K <= 0 || product.alpha == 0) return start_from(ctx, product);
  Blas& blas = *static_cast<Blas*>(ctx.blas());
  const cublasComputeType_t wanted = compute_type<T>(ctx.precision);
  const bool fusable = product.bias_stride == 1 && !product.c.transposed;
  if ((!product.bias || fusable) && try_product(blas, product, wanted)) return;
  if (product.bias) {  // no such epilogue: the bias first, the product on top
    start_from(ctx, product);
    Product<T> p = product;
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

int64_t cuda_k_pieces(int64_t M, int64_t N, int64_t K) {
  constexpr int64_t tile = 128, wanted_tiles = 192, least = 256;
  const int64_t tiles = ((M + tile - 1) / tile) * ((N + tile - 1) / tile);
  const int64_t most = std::min(wanted_tiles / std::max<int64_t>(tiles, 1), K / least);
  if (most <= 1) return 1;
  for (int64_t pieces = most; pieces > most / 2; --pieces)
    if (K % pieces == 0) return pieces;
  return most;
}

template <class T>
void cuda_gemm_long(Context& ctx, const Product<T>& product, T* scratch) {
  const int64_t pieces = cuda_k_pieces(product.M, product.N, product.K);
  if (pieces == 1) return cuda_gemm(ctx, product);
  Product<T> p = product;
  if (p.c.transposed) {
    std::swap(p.M, p.N);
    p.a = product.b.t(), p.b = product.a.t(), p.c = product.c.t();
  }
  const Matrix<T> result = p.c;
  const int64_t length = p.K / pieces, left = p.K - length * pieces;  // the last piece takes what is left
  const auto along_a = [&](int64_t k) { return p.a.at(0, k).data - p.a.data; };
  const auto along_b = [&](int64_t k) { return p.b.at(k, 0).data - p.b.data; };
  p.c = {scratch, p.N};
  p.a_step = along_a(length), p.b_step = along_b(length), p.c_step = p.M * p.N;
  p.K = length, p.batch = left ? pieces - 1 : pieces;
  cuda_gemm(ctx, p);
  if (left) {
    const int64_t done = length * (pieces - 1);
    p.a = p.a.at(0, done), p.b = p.b.at(done, 0), p.c.data = scratch + (pieces - 1) * p.c_step;
    p.K = length + left, p.batch = 1;
    cuda_gemm(ctx, p);
  }
  for_each_index(ctx, p.M * p.N, SumPieces<T>{scratch, pieces, p.M, p.N, result});
}
template void cuda_gemm_long(Context&, const Product<float>&, float*);
template void cuda_gemm_long(Context&, const Product<double>&, double*);

void* make_cuda_blas(void* stream) {
  auto* blas = new Blas;
  blas->stream = static_cast<cudaStream_t>(stream);
  ET_CUDA(cudaMalloc(&blas->workspace, workspace_bytes));
  check(cublasLtCreate(&blas->handle), "cublasLtCreate", "Context");
  return blas;
}

void destroy_cuda_blas(void* opaque) {
  auto* blas = static_cast<Blas*>(opaque);
  for (auto& [key, plan] : blas->plans) {
    cublasLtMatmulDescDestroy(plan.operation);
    for (cublasLtMatrixLayout_t each : {plan.a, plan.b, plan.c}) cublasLtMatrixLayoutDestroy(each);
  }
  cublasLtDestroy(blas->handle);
  cudaFree(blas->workspace);
  delete blas;
}

}  // namespace eigentrace
#endif
