#include "tensor/cuda_blas.h"

#ifdef EIGENTRACE_WITH_CUDA
#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <map>
#include <string>

#include "tensor/dispatch.h"
#include "tensor/gemm_tensor_cores.cuh"
#include "tensor/kernels/column_sum.cuh"

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

/// What tensor cores are asked for and cuBLASLt does not do (three parts) or does in float32's time (rows
/// that are no multiple of 16 bytes), if it is large enough to matter.
template <class T>
bool takes_own_kernel(const Context& ctx, const Product<T>& p) {
  constexpr int64_t large = int64_t{1} << 24, most = int64_t{1} << 30;
  if (sizeof(T) == 8 || ctx.precision == Precision::fp32 || p.c.transposed || p.bias_stride != 1)
    return false;
  if (p.M > most || p.N > most || p.K > most || p.batch > 65535 || p.M > 65535 * int64_t{tc_tile})
    return false;
  if (ctx.precision == Precision::tf32x3) return true;
  const auto even = [](const Matrix<const T>& x, int64_t rows, int64_t cols, int64_t step) {
    return alignment(x.data) >= 16 && x.ld % 4 == 0 && step % 4 == 0 && (x.transposed ? rows : cols) % 4 == 0;
  };
  const bool aligned =
      even(p.a, p.M, p.K, p.a_step) && even(p.b, p.K, p.N, p.b_step) && even(p.c, p.M, p.N, p.c_step);
  return !aligned && p.M * p.N * p.K * p.batch >= large;
}

void own_product(Context& ctx, const Product<float>& p) {
  const TcProduct product = tc_product(p, (p.K + tc_depth - 1) / tc_depth * tc_depth);
  const TcStore store{
      p.c.data, p.c.ld, p.c_step, 0,
      p.alpha,  p.beta, p.bias,   alignment(p.c.data) >= 8 && p.c.ld % 2 == 0 && p.c_step % 2 == 0};
  if (ctx.precision == Precision::tf32x3)
    tc_launch<3>(ctx, product, !p.a.transposed, p.b.transposed, p.batch, AsRead{}, store, nullptr);
  else
    tc_launch<1>(ctx, product, !p.a.transposed, p.b.transposed, p.batch, AsRead{}, store, nullptr);
}

/// Four threads an element, each a quarter of the pieces in order, then the quarters in order: element e of y
/// (row-major [M,N]) from pieces[p·M·N + e]; after those, sums from partial_sums[p·M + i].
template <class T>
struct Pieces {
  const T *products, *partial_sums;
  int count;
  int64_t M, N;
  Matrix<T> y;
  T* sums;
  int64_t sums_stride;
};
template <class T>
__global__ void __launch_bounds__(256) sum_pieces_kernel(Pieces<T> p) {
  __shared__ T quarters[4][64];
  const int64_t size = p.M * p.N, element = static_cast<int64_t>(blockIdx.x) * 64 + threadIdx.x % 64;
  const int quarter = static_cast<int>(threadIdx.x / 64), each = (p.count + 3) / 4;
  const int begin = quarter * each, end = begin + each < p.count ? begin + each : p.count;
  const bool of_sums = element >= size;
  T sum = 0;
  if (element < size + (p.sums ? p.M : 0)) {
    const int64_t step = of_sums ? p.M : size;
    const T* at = (of_sums ? p.partial_sums + (element - size) : p.products + element) + begin * step;
#pragma unroll 8
    for (int i = begin; i < end; ++i, at += step) sum += *at;
  }
  quarters[quarter][threadIdx.x % 64] = sum;
  __syncthreads();
  if (quarter > 0 || element >= size + (p.sums ? p.M : 0)) return;
  for (int q = 1; q < 4; ++q) sum += quarters[q][threadIdx.x];
  if (of_sums) {
    p.sums[(element - size) * p.sums_stride] = sum;
  } else {
    const int64_t i = element / p.N, j = element % p.N;
    p.y.data[p.y.transposed ? j * p.y.ld + i : i * p.y.ld + j] = sum;
  }
}
template <class T>
void sum_pieces(Context& ctx, const Pieces<T>& p) {
  launch(ctx, sum_pieces_kernel<T>, blocks_for(p.M * p.N + (p.sums ? p.M : 0), 64), 256, 0, p);
}

/// How cuda_gemm_long goes about a product.
struct LongPlan {
  bool own;                ///< one pass of our kernel makes products and sums
  int64_t pieces, length;  ///< the last one may be shorter (own) or takes what is left (cuBLASLt)
};
LongPlan long_plan(const Context& ctx, DType dtype, int64_t M, int64_t N, int64_t K) {
  const int64_t tiles = std::max<int64_t>((M + 127) / 128 * ((N + 127) / 128), 1);
  // Where memory and not arithmetic is the bound, one pass over dy for both results is what counts.
  constexpr int64_t balance = 110, slots = 2 * 132, least = 256;
  const bool own = dtype == DType::f32 && ctx.precision != Precision::fp32 && K < (int64_t{1} << 30) &&
                   std::max(M, N) < (int64_t{1} << 22) &&
                   (ctx.precision == Precision::tf32x3 || M * N <= balance * (M + N));
  if (own) {
    const int64_t wanted = std::max<int64_t>(slots / tiles, 1), even = (K + wanted - 1) / wanted;
    const int64_t length = std::max(std::max<int64_t>(even + 31, 1) / 32 * 32, least);
    return {true, std::max<int64_t>((K + length - 1) / length, 1), length};
  }
  const int64_t most = std::min<int64_t>(192 / tiles, K / least);
  int64_t pieces = std::max<int64_t>(most, 1);
  for (int64_t even = pieces; even > most / 2 && even > 1; --even)
    if (K % even == 0) {
      pieces = even;
      break;
    }
  return {false, pieces, K / pieces};
}

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
  if constexpr (sizeof(T) == 4)
    if (takes_own_kernel(ctx, product)) return own_product(ctx, product);
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

int64_t cuda_long_scratch(const Context& ctx, DType dtype, int64_t M, int64_t N, int64_t K, bool sums) {
  const LongPlan plan = long_plan(ctx, dtype, M, N, K);
  if (plan.own) return plan.pieces * (M * N + (sums ? M : 0));
  return (plan.pieces == 1 ? 0 : plan.pieces * M * N) + (sums ? kernels::column_sum_pieces(K) * M : 0);
}

template <class T>
void cuda_gemm_long(Context& ctx, const Product<T>& product, T* sums, int64_t sums_stride, T* scratch) {
  if (product.M <= 0) return;
  const LongPlan plan = long_plan(ctx, dtype_of<T>(), product.M, product.N, product.K);
  T* partial_sums = scratch + (plan.own || plan.pieces > 1 ? plan.pieces * product.M * product.N : 0);
  if constexpr (sizeof(T) == 4)
    if (plan.own && product.K > 0 && product.N > 0) {
      const TcProduct p = tc_product(product, plan.length);
      const TcStore store{scratch, p.N, 0, product.M * product.N, 1, 0, nullptr, product.N % 2 == 0};
      const auto start =
          ctx.precision == Precision::tf32x3 ? tc_launch<3, AsRead, TcStore> : tc_launch<1, AsRead, TcStore>;
      start(ctx, p, !product.a.transposed, product.b.transposed, 1, AsRead{}, store,
            sums ? partial_sums : nullptr);
      return sum_pieces(ctx, Pieces<T>{scratch, partial_sums, p.pieces, product.M, product.N, product.c, sums,
                                       sums_stride});
    }
  if (sums)
    kernels::column_sum(ctx, Rows<T>{const_cast<T*>(product.a.data), product.K, product.M, product.a.ld},
                        sums, sums_stride, partial_sums);
  if (plan.pieces == 1 || product.N <= 0) return cuda_gemm(ctx, product);
  Product<T> p = product;
  if (p.c.transposed) {
    std::swap(p.M, p.N);
    p.a = product.b.t(), p.b = product.a.t(), p.c = product.c.t();
  }
  const Matrix<T> result = p.c;
  const int64_t left = p.K - plan.length * plan.pieces;
  p.c = {scratch, p.N};
  p.a_step = p.a.at(0, plan.length).data - p.a.data, p.b_step = p.b.at(plan.length, 0).data - p.b.data;
  p.c_step = p.M * p.N;
  p.K = plan.length, p.batch = left ? plan.pieces - 1 : plan.pieces;
  cuda_gemm(ctx, p);
  if (left) {
    p.a = p.a.at(0, plan.length * p.batch), p.b = p.b.at(plan.length * p.batch, 0);
    p.c.data += p.batch * p.c_step;
    p.K = plan.length + left, p.batch = 1;
    cuda_gemm(ctx, p);
  }
  sum_pieces(ctx, Pieces<T>{scratch, nullptr, static_cast<int>(plan.pieces), p.M, p.N, result, nullptr, 0});
}
template void cuda_gemm_long(Context&, const Product<float>&, float*, int64_t, float*);
template void cuda_gemm_long(Context&, const Product<double>&, double*, int64_t, double*);

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
