#include "tensor/blas.h"

#include <cblas.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdlib>

#include "tensor/error.h"

extern "C" {
char* openblas_get_corename();
void openblas_set_num_threads(int);
}

namespace eigentrace {
namespace {

/// The OpenBLAS core whose kernels suit this CPU, or null where we know no better than OpenBLAS.
const char* suitable_core() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return "SkylakeX";
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "Haswell";
#endif
  return nullptr;
}

bool as_good_as(const std::string& core, const std::string& suitable) {
  for (const char* avx512 : {"SkylakeX", "Cooperlake", "SapphireRapids"})
    if (core == avx512) return true;
  if (suitable != "Haswell") return false;
  for (const char* avx2 : {"Haswell", "Zen", "Excavator"})
    if (core == avx2) return true;
  return false;
}

/// One thread a call, from the first call on, whoever links this library.
void use_one_thread() {
  static const bool once = (openblas_set_num_threads(1), true);
  (void)once;
}

int checked_int(int64_t n) {
  if (n > INT_MAX) fail("gemm: a size of at most 2147483647 expected, found " + std::to_string(n));
  return static_cast<int>(n);
}

}  // namespace

void ensure_fast_blas(int, char** argv) {
  constexpr const char* guard = "EIGENTRACE_RESTARTED";
  use_one_thread();
  const bool restarted = std::getenv(guard) != nullptr;
  if (restarted) unsetenv(guard);
  if (restarted) return;
  bool again = false;
  const auto set = [&](const char* variable, const char* value) {
    again = true;
    setenv(variable, value, 1);
  };
  const char* core = suitable_core();
  if (core && !std::getenv("OPENBLAS_CORETYPE") && !as_good_as(blas_core(), core))
    set("OPENBLAS_CORETYPE", core);
  // Threads that wait spin for milliseconds by default. On a machine that others use as well they then spin
  // away the very time that the last thread needs: a training step took 50 times longer on two busy cores.
  if (!std::getenv("OMP_WAIT_POLICY") && !std::getenv("GOMP_SPINCOUNT")) set("GOMP_SPINCOUNT", "10000");
  if (!again) return;
  setenv(guard, "1", 1);
  char path[PATH_MAX] = "/proc/self/exe";  // by its own name, so that ps and top show that
  const ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
  if (length > 0) path[length] = '\0';
  execv(path, argv);
  unsetenv(guard);  // could not be started again: right results, slowly
}

std::string blas_core() { return openblas_get_corename(); }

template <class T>
Matrix<T> matrix_of(const Tensor& tensor, const char* what) {
  if (tensor.rank() < 2) fail(std::string(what) + ": a matrix expected, found " + to_string(tensor));
  const int64_t rows = tensor.dim(-2), cols = tensor.dim(-1);
  const int64_t down = tensor.strides()[-2], across = tensor.strides()[-1];
  T* data = tensor.data<T>();
  if ((across == 1 || cols <= 1) && (down >= cols || rows <= 1))
    return {data, rows <= 1 ? std::max<int64_t>(cols, 1) : down, false};
  if ((down == 1 || rows <= 1) && (across >= rows || cols <= 1))
    return {data, cols <= 1 ? std::max<int64_t>(rows, 1) : across, true};
  fail(std::string(what) + ": rows or columns without gaps expected, found " + to_string(tensor) +
       " with strides " + to_string(tensor.strides()) + "; copy it first");
}
template Matrix<float> matrix_of(const Tensor&, const char*);
template Matrix<BFloat16> matrix_of(const Tensor&, const char*);
template Matrix<double> matrix_of(const Tensor&, const char*);

namespace {
std::atomic<int64_t> operations{0};
}
int64_t gemm_operations() { return operations.load(std::memory_order_relaxed); }

template <class T>
void gemm(int64_t M, int64_t N, int64_t K, T alpha, Matrix<const T> a, Matrix<const T> b, T beta,
          Matrix<T> c) {
  if (c.transposed) return gemm<T>(N, M, K, alpha, b.t(), a.t(), beta, c.t());
  if (M <= 0 || N <= 0) return;
  operations.fetch_add(2 * M * N * K, std::memory_order_relaxed);
  use_one_thread();
  const auto layout = [](const Matrix<const T>& x) { return x.transposed ? CblasTrans : CblasNoTrans; };
  const int m = checked_int(M), n = checked_int(N), k = checked_int(K);
  const int lda = checked_int(a.ld), ldb = checked_int(b.ld), ldc = checked_int(c.ld);
  if constexpr (sizeof(T) == sizeof(float))
    cblas_sgemm(CblasRowMajor, layout(a), layout(b), m, n, k, alpha, a.data, lda, b.data, ldb, beta, c.data,
                ldc);
  else
    cblas_dgemm(CblasRowMajor, layout(a), layout(b), m, n, k, alpha, a.data, lda, b.data, ldb, beta, c.data,
                ldc);
}
template void gemm(int64_t, int64_t, int64_t, float, Matrix<const float>, Matrix<const float>, float,
                   Matrix<float>);
template void gemm(int64_t, int64_t, int64_t, double, Matrix<const double>, Matrix<const double>, double,
                   Matrix<double>);

Tiling::Tiling(int64_t m, int64_t n) : M(m), N(n) {
  constexpr int64_t wanted_tiles = 16;
  const auto piece = [](int64_t size, int64_t pieces, int64_t least, int64_t most) {
    const int64_t even = (size + pieces - 1) / pieces;
    return std::clamp((even + 31) / 32 * 32, least, most);
  };
  rows = piece(std::max<int64_t>(M, 1), wanted_tiles, 256, 512);
  row_tiles = std::max<int64_t>((M + rows - 1) / rows, 1);
  const int64_t cuts = (wanted_tiles + row_tiles - 1) / row_tiles;
  cols = cuts == 1 ? std::max<int64_t>(N, 1) : piece(std::max<int64_t>(N, 1), cuts, 256, 4096);
  col_tiles = std::max<int64_t>((N + cols - 1) / cols, 1);
}

template <class T>
void parallel_gemm(int64_t M, int64_t N, int64_t K, T alpha, Matrix<const T> a, Matrix<const T> b, T beta,
                   Matrix<T> c) {
  const Tiling tiling(M, N);
  const int64_t count = tiling.count();
#pragma omp parallel for schedule(dynamic, 1) if (count > 1)
  for (int64_t i = 0; i < count; ++i) {
    const Tiling::Tile t = tiling[i];
    gemm<T>(t.rows, t.cols, K, alpha, a.at(t.row, 0), b.at(0, t.col), beta, c.at(t.row, t.col));
  }
}
template void parallel_gemm(int64_t, int64_t, int64_t, float, Matrix<const float>, Matrix<const float>, float,
                            Matrix<float>);
template void parallel_gemm(int64_t, int64_t, int64_t, double, Matrix<const double>, Matrix<const double>,
                            double, Matrix<double>);

int64_t k_pieces(int64_t M, int64_t N, int64_t K) {
  constexpr int64_t piece = 2048, most = 16, most_scratch = int64_t{4} << 20;
  const int64_t affordable = most_scratch / std::max<int64_t>(M * N, 1);
  return std::clamp<int64_t>((K + piece - 1) / piece, 1, std::clamp<int64_t>(affordable, 1, most));
}

template <class T>
void parallel_gemm_long(int64_t M, int64_t N, int64_t K, Matrix<const T> a, Matrix<const T> b, Matrix<T> c,
                        T* scratch) {
  const int64_t pieces = k_pieces(M, N, K);
  if (pieces == 1) return parallel_gemm<T>(M, N, K, 1, a, b, 0, c);
  if (c.transposed) return parallel_gemm_long<T>(N, M, K, b.t(), a.t(), c.t(), scratch);
  const int64_t length = (K + pieces - 1) / pieces;
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t p = 0; p < pieces; ++p) {
    const int64_t first = std::min(p * length, K), terms = std::min(length, K - first);
    gemm<T>(M, N, terms, 1, a.at(0, first), b.at(first, 0), 0, Matrix<T>{scratch + p * M * N, N});
  }
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < M; ++i) {
    T* row = c.data + i * c.ld;
    const T* part = scratch + i * N;
#pragma omp simd
    for (int64_t j = 0; j < N; ++j) row[j] = part[j];
    for (int64_t p = 1; p < pieces; ++p) {
      part += M * N;
#pragma omp simd
      for (int64_t j = 0; j < N; ++j) row[j] += part[j];
    }
  }
}
template void parallel_gemm_long(int64_t, int64_t, int64_t, Matrix<const float>, Matrix<const float>,
                                 Matrix<float>, float*);
template void parallel_gemm_long(int64_t, int64_t, int64_t, Matrix<const double>, Matrix<const double>,
                                 Matrix<double>, double*);

}  // namespace eigentrace
