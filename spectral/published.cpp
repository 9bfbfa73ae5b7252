#include <complex>
#define lapack_complex_float std::complex<float>
#define lapack_complex_double std::complex<double>
#include "spectral/published.h"

#include <cblas.h>
#include <fmt/format.h>
#include <lapacke.h>

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "spectral/eigen.h"
#include "spectral/statistics.h"
#include "tensor/error.h"

namespace eigentrace {
namespace {

constexpr double floor_value = 2e-23;  // what the published code puts in place of an exact 0

template <class T>
void check_row(const char* function, std::span<const T> scores, int64_t row) {
  if (row < 0 || static_cast<int64_t>(scores.size()) <= row)
    fail(fmt::format("{}: scores: expected at least {} values for row {}, found {}", function, row + 1, row,
                     scores.size()));
}

template <class T>
T softplus(T x) {
  return x > 20 ? x : std::log1p(std::exp(x));  // the threshold of the published framework
}

template <class T>
T apply(PublishedNormFunction f, T x) {
  switch (f) {
    case PublishedNormFunction::exp:
      return std::exp(x);
    case PublishedNormFunction::elu:
      return x > 0 ? x : std::expm1(x);
    case PublishedNormFunction::softplus:
      return softplus(x);
    case PublishedNormFunction::sigmoid:
      return 1 / (1 + std::exp(-x));
  }
  fail("published_norm: f: expected exp, elu, softplus or sigmoid");
}

template <class T>
void multiply(int64_t m, int64_t n, int64_t k, const std::complex<T>* a, const std::complex<T>* b,
              std::complex<T>* c) {
  const std::complex<T> one(1), zero(0);
  if constexpr (std::is_same_v<T, float>)
    cblas_cgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m, n, k, &one, a, k, b, n, &zero, c, n);
  else
    cblas_zgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m, n, k, &one, a, k, b, n, &zero, c, n);
}

lapack_int eigenvalues(int64_t n, std::complex<float>* a, std::complex<float>* values) {
  return LAPACKE_cgeev(LAPACK_COL_MAJOR, 'N', 'N', n, a, n, values, nullptr, 1, nullptr, 1);
}
lapack_int eigenvalues(int64_t n, std::complex<double>* a, std::complex<double>* values) {
  return LAPACKE_zgeev(LAPACK_COL_MAJOR, 'N', 'N', n, a, n, values, nullptr, 1, nullptr, 1);
}

}  // namespace

template <class T>
double published_softmax_log_eta(std::span<const T> scores, int64_t row, int64_t steps) {
  check_row("published_softmax_log_eta", scores, row);
  if (row >= steps)
    fail(
        fmt::format("published_softmax_log_eta: row: expected a row below steps = {}, found {}", steps, row));
  T top = *std::max_element(scores.begin(), scores.begin() + row + 1);
  if (row < steps - 1) top = std::max(top, T(0));  // the masked entries are zeros when the maximum is taken
  double sum = static_cast<double>(steps - 1 - row);
  for (int64_t j = 0; j <= row; ++j) sum += std::exp(static_cast<double>(scores[j] - top));
  return static_cast<double>(top) + std::log(sum);
}

template <class T>
double published_linear_log_eta(std::span<const T> scores, int64_t row) {
  check_row("published_linear_log_eta", scores, row);
  double sum = 0;
  for (int64_t j = 0; j <= row; ++j) sum += static_cast<double>(scores[j]);
  return std::log(sum == 0 ? floor_value : sum);
}

std::vector<double> published_ratios(std::span<const double> log_eta) {
  if (log_eta.empty()) fail("published_ratios: log_eta: expected at least one row, found none");
  std::vector<double> out;
  for (size_t i = 1; i < log_eta.size(); ++i) out.push_back(log_eta[i - 1] - log_eta[i]);
  return out;
}

template <class T>
std::vector<double> published_norm(std::span<const T> n, T offset, PublishedNormFunction f) {
  if (n.empty()) fail("published_norm: n: expected at least one step, found none");
  std::vector<double> log_nu;
  for (T x : n) {
    const T nu = std::exp(-apply(f, x + offset));
    log_nu.push_back(std::log(nu == 0 ? floor_value : static_cast<double>(nu)));
  }
  std::vector<double> out;
  for (size_t i = 1; i < log_nu.size(); ++i) out.push_back(log_nu[i] - log_nu[i - 1]);
  return out;
}

template <class T>
std::vector<double> published_mamba2(std::span<const T> dt, T dt_bias, T a_log) {
  std::vector<double> out;
  const T a = -std::exp(a_log);
  for (T x : dt) out.push_back(std::log(static_cast<double>(std::exp(softplus(x + dt_bias) * a))));
  return out;
}

template <class T>
std::vector<double> published_pseudo_lti(T a, int64_t steps) {
  if (steps < 0) fail(fmt::format("published_pseudo_lti: steps: expected at least 0, found {}", steps));
  return std::vector<double>(steps, std::log(static_cast<double>(std::exp(-softplus(a)))));
}

PublishedEigenvalues published_s5(std::span<const std::complex<double>> lambda,
                                  std::span<const double> log_step) {
  if (lambda.size() != log_step.size() || lambda.empty())
    fail(fmt::format(
        "published_s5: lambda, log_step: expected the same number of states, at least one, found {} and {}",
        lambda.size(), log_step.size()));
  PublishedEigenvalues out;
  for (size_t n = 0; n < lambda.size(); ++n) {
    const double step = std::exp(log_step[n]);
    out.log_abs.push_back(lambda[n].real() * step);
    out.arg.push_back(wrap_angle(lambda[n].imag() * step));
  }
  return out;
}

template <class T>
PublishedEigenvalues published_s4(std::span<const std::complex<T>> lambda, std::span<const std::complex<T>> p,
                                  T step) {
  using C = std::complex<T>;
  const int64_t n = static_cast<int64_t>(lambda.size());
  if (n < 1 || p.size() != lambda.size())
    fail(fmt::format(
        "published_s4: lambda, p: expected the same number of states, at least one, found {} and {}", n,
        p.size()));
  if (!(step > 0)) fail(fmt::format("published_s4: step: expected a positive number, found {}", step));
  use_one_blas_thread();
  // (2/Δ + Λ − PP*) and the inverse of (2/Δ − Λ + PP*) by Woodbury, multiplied in T as the study did.
  const T scale = 2 / step;
  std::vector<C> e(n), forward(n * n), backward(n * n), a(n * n), values(n);
  C denominator(1);
  for (int64_t i = 0; i < n; ++i)
    e[i] = C(1) / (scale - lambda[i]), denominator += std::conj(p[i]) * e[i] * p[i];
  const C factor = C(1) / denominator;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) {
      forward[i * n + j] = -p[i] * std::conj(p[j]) + (i == j ? scale + lambda[i] : C(0));
      backward[i * n + j] = -e[i] * p[i] * factor * std::conj(p[j]) * e[j] + (i == j ? e[i] : C(0));
    }
  multiply<T>(n, n, n, backward.data(), forward.data(), a.data());
  for (const C& x : a)
    if (!std::isfinite(x.real()) || !std::isfinite(x.imag()))
      fail("published_s4: lambda, p, step: expected values that give a finite matrix, found otherwise");
  // LAPACK wants columns.
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < i; ++j) std::swap(a[i * n + j], a[j * n + i]);
  const lapack_int info = eigenvalues(n, a.data(), values.data());
  if (info != 0) fail(fmt::format("published_s4: LAPACK geev failed with info = {} for {} states", info, n));
  PublishedEigenvalues out;
  for (const C& z : values) {
    const Complex128 w(z);
    out.log_abs.push_back(std::log(std::abs(w))), out.arg.push_back(angle_of(w));
  }
  return out;
}

#define ET_PUBLISHED(T)                                                                         \
  template double published_softmax_log_eta<T>(std::span<const T>, int64_t, int64_t);           \
  template double published_linear_log_eta<T>(std::span<const T>, int64_t);                     \
  template std::vector<double> published_norm<T>(std::span<const T>, T, PublishedNormFunction); \
  template std::vector<double> published_mamba2<T>(std::span<const T>, T, T);                   \
  template std::vector<double> published_pseudo_lti<T>(T, int64_t);                             \
  template PublishedEigenvalues published_s4<T>(std::span<const std::complex<T>>,               \
                                                std::span<const std::complex<T>>, T);
ET_PUBLISHED(float)
ET_PUBLISHED(double)
#undef ET_PUBLISHED

}  // namespace eigentrace
