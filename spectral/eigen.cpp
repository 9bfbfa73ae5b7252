#define LAPACK_COMPLEX_CPP
#include <complex>
#define lapack_complex_float std::complex<float>
#define lapack_complex_double std::complex<double>
#include "spectral/eigen.h"

#include <cblas.h>
#include <fmt/format.h>
#include <lapacke.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>

#include "tensor/error.h"
#include "tensor/worse.h"

namespace eigentrace {
namespace {

constexpr double eps = std::numeric_limits<double>::epsilon();

template <class T>
void check_matrix(const char* function, int64_t n, std::span<const T> a) {
  if (n < 1 || static_cast<int64_t>(a.size()) != n * n)
    fail(fmt::format("{}: a: expected n·n values with n = {} ≥ 1, found {}", function, n, a.size()));
  for (size_t k = 0; k < a.size(); ++k)
    if (!std::isfinite(std::real(a[k])) || !std::isfinite(std::imag(a[k])))
      fail(fmt::format("{}: a: expected finite entries, found {} + {}i at row {}, column {}", function,
                       std::real(a[k]), std::imag(a[k]), k / n, k % n));
}

void check_info(const char* function, const char* routine, int64_t n, lapack_int info) {
  if (info < 0)
    fail(fmt::format("{}: LAPACK {} refused its argument {} (n = {}): this is a defect, please report it",
                     function, routine, -info, n));
  if (info > 0)
    fail(fmt::format(
        "{}: LAPACK {} did not converge (info = {}, n = {}): {} eigenvalues were not found; check the "
        "matrix for entries of very different size",
        function, routine, info, n, info));
}

// LAPACK is column-major.
template <class T>
std::vector<T> transposed(int64_t n, std::span<const T> a) {
  std::vector<T> out(n * n);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) out[j * n + i] = a[i * n + j];
  return out;
}

double norm_1(int64_t n, std::span<const Complex128> a) {
  std::vector<double> columns(n, 0.0);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) columns[j] += std::abs(a[i * n + j]);
  return *std::max_element(columns.begin(), columns.end());
}

double norm_2(std::span<const Complex128> v) {
  double sum = 0;
  for (const Complex128& x : v) sum += std::norm(x);
  return std::sqrt(sum);
}

struct Residual {
  double one, two;  // ‖r‖₁/‖v‖₁ and ‖r‖₂/‖v‖₂ of r = A v − λ v
};

// For every row v_k of `vectors` [n, n] (as rows, so A v_k = row k of V Aᵀ).
std::vector<Residual> residuals(int64_t n, std::span<const Complex128> a, std::span<const Complex128> values,
                                const std::vector<Complex128>& vectors) {
  std::vector<Complex128> product(n * n);
  const Complex128 one(1), zero(0);
  cblas_zgemm(CblasRowMajor, CblasNoTrans, CblasTrans, n, n, n, &one, vectors.data(), n, a.data(), n, &zero,
              product.data(), n);
  std::vector<Residual> out(n);
  for (int64_t k = 0; k < n; ++k) {
    double r1 = 0, v1 = 0, r2 = 0, v2 = 0;
    for (int64_t i = 0; i < n; ++i) {
      const Complex128 v = vectors[k * n + i], r = product[k * n + i] - values[k] * v;
      r1 += std::abs(r), v1 += std::abs(v), r2 += std::norm(r), v2 += std::norm(v);
    }
    out[k] = {r1 / v1, std::sqrt(r2 / v2)};
  }
  return out;
}

double relative_residual(double residual, int64_t n, double norm) {
  return residual == 0 ? 0 : residual / (static_cast<double>(n) * eps * norm);
}

// Sorts and fills in what the detail asks for. right and left hold vector k as row k, unsorted.
EigenResult finish(int64_t n, std::span<const Complex128> a, const std::vector<Complex128>& values,
                   const std::vector<Complex128>& right, const std::vector<Complex128>& left,
                   EigenDetail detail) {
  EigenResult result;
  result.n = n;
  result.norm = norm_1(n, a);
  const std::vector<int64_t> order = order_by_angle(values);
  for (int64_t k : order) result.values.push_back(values[k]);
  if (detail == EigenDetail::values) return result;
  for (int64_t k : order) {
    result.right.insert(result.right.end(), right.begin() + k * n, right.begin() + (k + 1) * n);
    result.left.insert(result.left.end(), left.begin() + k * n, left.begin() + (k + 1) * n);
  }
  const double frobenius = norm_2(a);
  const std::vector<Residual> r = residuals(n, a, result.values, result.right);
  for (int64_t k = 0; k < n; ++k) {
    Complex128 overlap = 0;
    for (int64_t i = 0; i < n; ++i) overlap += std::conj(result.left[k * n + i]) * result.right[k * n + i];
    result.residuals.push_back(relative_residual(r[k].one, n, result.norm));
    result.conditions.push_back(worse(1.0, 1 / std::abs(overlap)));
    result.error_bounds.push_back(result.conditions[k] * (r[k].two + eps * frobenius));
  }
  if (detail == EigenDetail::bounds) result.right.clear(), result.left.clear();
  return result;
}

}  // namespace

void use_one_blas_thread() {
  static const bool done = [] {
    openblas_set_num_threads(1);
    return true;
  }();
  (void)done;
}

double EigenResult::max_residual() const {
  return std::accumulate(residuals.begin(), residuals.end(), 0.0, worse);
}

double EigenResult::max_condition() const {
  return std::accumulate(conditions.begin(), conditions.end(), 0.0, worse);
}

double angle_of(Complex128 z) {
  const double angle = std::arg(z);
  return angle <= -std::numbers::pi ? std::numbers::pi : angle;
}

std::vector<int64_t> order_by_angle(std::span<const Complex128> values) {
  std::vector<std::pair<double, double>> keys;
  for (const Complex128& z : values) keys.emplace_back(angle_of(z), std::abs(z));
  std::vector<int64_t> order(values.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return keys[a] < keys[b]; });
  return order;
}

EigenResult eigen_general(int64_t n, std::span<const Complex128> a, EigenDetail detail) {
  check_matrix("eigen_general", n, a);
  use_one_blas_thread();
  const char job = detail == EigenDetail::values ? 'N' : 'V';
  const int64_t kept = job == 'V' ? n * n : 0;
  std::vector<Complex128> work = transposed(n, a), values(n), left(kept), right(kept);
  // Column k of a column-major array is row k of a row-major one: vectors arrive as rows.
  check_info("eigen_general", "zgeev", n,
             LAPACKE_zgeev(LAPACK_COL_MAJOR, job, job, n, work.data(), n, values.data(), left.data(), n,
                           right.data(), n));
  return finish(n, a, values, right, left, detail);
}

EigenResult eigen_general(int64_t n, std::span<const double> a, EigenDetail detail) {
  check_matrix("eigen_general", n, a);
  use_one_blas_thread();
  const char job = detail == EigenDetail::values ? 'N' : 'V';
  const int64_t kept = job == 'V' ? n * n : 0;
  std::vector<double> work = transposed(n, a), re(n), im(n), vl(kept), vr(kept);
  check_info("eigen_general", "dgeev", n,
             LAPACKE_dgeev(LAPACK_COL_MAJOR, job, job, n, work.data(), n, re.data(), im.data(), vl.data(), n,
                           vr.data(), n));
  std::vector<Complex128> values(n), left(kept), right(kept);
  for (int64_t k = 0; k < n; ++k) values[k] = {re[k], im[k]};
  // A conjugate pair (k, k+1), the one with Im λ > 0 first, shares columns: real parts in k, imaginary in
  // k+1.
  for (int64_t k = 0; kept > 0 && k < n; ++k) {
    const int64_t first = im[k] < 0 ? k - 1 : k;
    const double sign = im[k] > 0 ? 1 : im[k] < 0 ? -1 : 0;
    for (int64_t i = 0; i < n; ++i) {
      right[k * n + i] = {vr[first * n + i], sign == 0 ? 0 : sign * vr[(first + 1) * n + i]};
      left[k * n + i] = {vl[first * n + i], sign == 0 ? 0 : sign * vl[(first + 1) * n + i]};
    }
  }
  const std::vector<Complex128> complex_a(a.begin(), a.end());
  return finish(n, complex_a, values, right, left, detail);
}

HermitianResult eigen_hermitian(int64_t n, std::span<const Complex128> a) {
  check_matrix("eigen_hermitian", n, a);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j <= i; ++j)
      if (std::abs(a[i * n + j] - std::conj(a[j * n + i])) >
          1e-12 * (std::abs(a[i * n + j]) + std::abs(a[j * n + i])))
        fail(fmt::format(
            "eigen_hermitian: a: expected a Hermitian matrix, found entries ({}, {}) and ({}, {}) that are "
            "not conjugate; use eigen_general",
            i, j, j, i));
  use_one_blas_thread();
  HermitianResult result;
  result.n = n, result.values.resize(n);
  std::vector<Complex128> work = transposed(n, a);
  check_info("eigen_hermitian", "zheevd", n,
             LAPACKE_zheevd(LAPACK_COL_MAJOR, 'V', 'L', n, work.data(), n, result.values.data()));
  const std::vector<Complex128> values(result.values.begin(), result.values.end());
  const double norm = norm_1(n, a);
  for (const Residual& r : residuals(n, a, values, work))
    result.residual = worse(result.residual, relative_residual(r.one, n, norm));
  result.vectors = transposed<Complex128>(n, work);
  return result;
}

}  // namespace eigentrace
