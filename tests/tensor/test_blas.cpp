#include "tensor/blas.h"

#include <doctest/doctest.h>
#include <omp.h>

#include <cmath>
#include <vector>

#include "tensor/error.h"
#include "tensor/rng.h"
#include "tensor/worse.h"

using namespace eigentrace;

namespace {

std::vector<double> random_values(int64_t n, uint64_t seed) {
  Rng rng(seed);
  std::vector<double> values(static_cast<size_t>(n));
  for (double& v : values) v = rng.normal();
  return values;
}

}  // namespace

TEST_CASE("blas: every layout gives the naive product") {
  const int64_t M = 33, N = 7, K = 63;
  const std::vector<double> a = random_values(M * K, 1), b = random_values(K * N, 2);
  std::vector<double> at(a.size()), bt(b.size());
  for (int64_t i = 0; i < M; ++i)
    for (int64_t k = 0; k < K; ++k) at[size_t(k * M + i)] = a[size_t(i * K + k)];
  for (int64_t k = 0; k < K; ++k)
    for (int64_t j = 0; j < N; ++j) bt[size_t(j * K + k)] = b[size_t(k * N + j)];
  std::vector<double> expected(size_t(M * N));
  for (int64_t i = 0; i < M; ++i)
    for (int64_t j = 0; j < N; ++j)
      for (int64_t k = 0; k < K; ++k)
        expected[size_t(i * N + j)] += a[size_t(i * K + k)] * b[size_t(k * N + j)];
  for (int layout = 0; layout < 8; ++layout) {
    const Matrix<const double> left =
        layout & 1 ? Matrix<const double>{at.data(), M, true} : Matrix<const double>{a.data(), K};
    const Matrix<const double> right =
        layout & 2 ? Matrix<const double>{bt.data(), K, true} : Matrix<const double>{b.data(), N};
    std::vector<double> c(size_t(M * N), NAN);  // beta = 0 must overwrite anything
    const Matrix<double> out = layout & 4 ? Matrix<double>{c.data(), M, true} : Matrix<double>{c.data(), N};
    parallel_gemm<double>(M, N, K, 1, left, right, 0, out);
    double worst = 0;
    for (int64_t i = 0; i < M; ++i)
      for (int64_t j = 0; j < N; ++j)
        worst = worse(worst, std::abs(*out.at(i, j).data - expected[size_t(i * N + j)]));
    CAPTURE(layout);
    CHECK(worst < 1e-13 * 63);
  }
}

TEST_CASE("blas: a long sum has the same bits for 1, 2 and 4 threads") {
  const int64_t M = 63, N = 100, K = 9000;
  CHECK(k_pieces(M, N, K) > 1);
  std::vector<float> a, b;
  for (double v : random_values(M * K, 3)) a.push_back(float(v));
  for (double v : random_values(N * K, 4)) b.push_back(float(v));
  std::vector<float> first;
  const int threads = omp_get_max_threads();
  for (int n : {1, 2, 4}) {
    omp_set_num_threads(n);
    std::vector<float> c(size_t(M * N), NAN), scratch(size_t(k_pieces(M, N, K) * M * N), NAN);
    parallel_gemm_long<float>(M, N, K, {a.data(), M, true}, {b.data(), N}, {c.data(), N}, scratch.data());
    if (first.empty()) first = c;
    CHECK(c == first);
  }
  omp_set_num_threads(threads);
  double exact = 0;
  for (int64_t k = 0; k < K; ++k) exact += double(a[size_t(k * M)]) * double(b[size_t(k * N)]);
  CHECK(first[0] == doctest::Approx(exact).epsilon(1e-4));
}

TEST_CASE("blas: many threads may multiply at once") {
  // OpenBLAS is called from our threads: a shared buffer in there would show as a wrong product.
  const int64_t n = 64;
  const std::vector<double> a = random_values(n * n, 5), b = random_values(n * n, 6);
  std::vector<double> expected(size_t(n * n));
  gemm<double>(n, n, n, 1, {a.data(), n}, {b.data(), n}, 0, {expected.data(), n});
  int wrong = 0;
#pragma omp parallel for num_threads(8) schedule(dynamic, 1) reduction(+ : wrong)
  for (int trial = 0; trial < 400; ++trial) {
    std::vector<double> c(size_t(n * n));
    gemm<double>(n, n, n, 1, {a.data(), n}, {b.data(), n}, 0, {c.data(), n});
    if (c != expected) ++wrong;
  }
  CHECK(wrong == 0);
}

TEST_CASE("blas: tiles cover the matrix once, whatever its shape") {
  for (int64_t M : {1, 63, 100, 512, 1000, 32768})
    for (int64_t N : {1, 7, 128, 8192, 50257}) {
      const Tiling tiling(M, N);
      int64_t area = 0;
      for (int64_t i = 0; i < tiling.count(); ++i) {
        CHECK(tiling[i].rows > 0);
        CHECK(tiling[i].cols > 0);
        area += tiling[i].rows * tiling[i].cols;
      }
      CHECK(area == M * N);
    }
}

TEST_CASE("blas: a matrix without a dense axis is refused") {
  const Tensor x = Tensor::zeros({4, 6, 2}, DType::f32);
  CHECK_THROWS_AS(matrix_of<float>(x.slice(2, 0, 1).reshape({4, 6}), "test"), Error);
  CHECK(matrix_of<float>(x.reshape({8, 6}).transpose(0, 1), "test").transposed);
}

TEST_CASE("blas: the core in use is named") { CHECK(!blas_core().empty()); }
