#include "spectral/eigen.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <thread>

#include "tensor/error.h"
#include "tensor/rng.h"
#include "tensor/worse.h"

using namespace eigentrace;

namespace {

std::vector<Complex128> random_matrix(int64_t n, uint64_t seed) {
  Rng rng(seed);
  std::vector<Complex128> a(n * n);
  for (auto& x : a) x = {rng.normal(), rng.normal()};
  return a;
}

}  // namespace

TEST_CASE("eigen: general matrices of every size have small residuals and conditions of at least one") {
  for (int64_t n : {1, 2, 63, 100}) {
    CAPTURE(n);
    const auto r = eigen_general(n, random_matrix(n, n));
    CHECK(static_cast<int64_t>(r.values.size()) == n);
    CHECK(r.max_residual() < 30);
    for (double c : r.conditions) CHECK(c >= 1);
    Complex128 trace = 0, sum = 0;
    const auto a = random_matrix(n, n);
    for (int64_t i = 0; i < n; ++i) trace += a[i * n + i], sum += r.values[i];
    CHECK(std::abs(trace - sum) < 1e-12 * r.norm);
    CHECK(r.right.empty());
    const auto alone = eigen_general(n, a, EigenDetail::values);
    CHECK(alone.residuals.empty());
    for (int64_t k = 0; k < n; ++k) CHECK(std::abs(alone.values[k] - r.values[k]) < 1e-11 * r.norm);
  }
}

TEST_CASE("eigen: left and right vectors are those of the matrix, as rows") {
  const int64_t n = 7;
  const auto a = random_matrix(n, 1);
  const auto r = eigen_general(n, a, EigenDetail::vectors);
  for (int64_t k = 0; k < n; ++k) {
    for (int64_t i = 0; i < n; ++i) {
      Complex128 av = 0, ya = 0;
      for (int64_t j = 0; j < n; ++j) {
        av += a[i * n + j] * r.right[k * n + j];
        ya += std::conj(r.left[k * n + j]) * a[j * n + i];
      }
      CHECK(std::abs(av - r.values[k] * r.right[k * n + i]) < 1e-13 * r.norm);
      CHECK(std::abs(ya - r.values[k] * std::conj(r.left[k * n + i])) < 1e-13 * r.norm);
    }
  }
}

TEST_CASE("eigen: a known non-normal matrix has its known condition, and the error bound holds") {
  // [[1, s], [0, 2]]: both conditions are √(1 + s²).
  const double s = 1e6;
  const std::vector<Complex128> a{1, s, 0, 2};
  const auto r = eigen_general(2, a);
  for (double c : r.conditions) CHECK(c == doctest::Approx(std::sqrt(1 + s * s)).epsilon(1e-9));
  // Perturb within the bound's own terms: E of norm 1e-12 moves λ by at most condition·‖E‖ to first order.
  auto moved = a;
  moved[2] += 1e-12;
  const auto m = eigen_general(2, moved);
  CHECK(std::abs(m.values[0] - r.values[0]) < 1.001 * r.conditions[0] * 1e-12 + r.error_bounds[0]);
  CHECK(std::abs(m.values[0] - r.values[0]) > 0.5 * r.conditions[0] * 1e-12);
  // Upper triangular with a known diagonal: every computed value is within its bound.
  const int64_t n = 20;
  Rng rng(4);
  std::vector<Complex128> t(n * n), truth;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = i + 1; j < n; ++j) t[i * n + j] = {rng.normal(), rng.normal()};
    t[i * n + i] = {0.3 * i, std::sin(2.0 * i)};
    truth.push_back(t[i * n + i]);
  }
  // A reflection on both sides hides the triangle from LAPACK.
  std::vector<double> w(n);
  double norm = 0;
  for (double& x : w) x = rng.normal(), norm += x * x;
  auto reflect = [&](std::vector<Complex128>& m, bool rows) {
    for (int64_t i = 0; i < n; ++i) {
      Complex128 dot = 0;
      for (int64_t j = 0; j < n; ++j) dot += w[j] * (rows ? m[i * n + j] : m[j * n + i]);
      for (int64_t j = 0; j < n; ++j) (rows ? m[i * n + j] : m[j * n + i]) -= 2 / norm * w[j] * dot;
    }
  };
  reflect(t, true), reflect(t, false);
  const auto hidden = eigen_general(n, t);
  for (const Complex128& z : truth) {
    double excess = 1e300;
    for (int64_t k = 0; k < n; ++k)
      excess = std::min(excess, std::abs(hidden.values[k] - z) - 10 * hidden.error_bounds[k]);
    CHECK(excess <= 0);
  }
}

TEST_CASE("eigen: real matrices give conjugate pairs that agree with the complex route") {
  for (int64_t n : {1, 2, 7, 63}) {
    Rng rng(n);
    std::vector<double> a(n * n);
    for (double& x : a) x = rng.normal();
    const std::vector<Complex128> c(a.begin(), a.end());
    const auto real = eigen_general(n, a), complex = eigen_general(n, c);
    CHECK(real.max_residual() < 30);
    for (int64_t k = 0; k < n; ++k) {
      CHECK(std::count(real.values.begin(), real.values.end(), std::conj(real.values[k])) > 0);
      double nearest = 1e300;
      int64_t at = 0;
      for (int64_t j = 0; j < n; ++j)
        if (std::abs(complex.values[j] - real.values[k]) < nearest)
          nearest = std::abs(complex.values[j] - real.values[k]), at = j;
      CHECK(nearest <= 10 * (real.error_bounds[k] + complex.error_bounds[at]));
      CHECK(real.conditions[k] == doctest::Approx(complex.conditions[at]).epsilon(1e-6));
    }
  }
}

TEST_CASE("eigen: a residual or condition that is no number is the largest") {
  EigenResult r;
  CHECK(r.max_residual() == 0);
  r.residuals = r.conditions = {1, NAN, 3};  // what sums that overflow leave
  CHECK(std::isnan(r.max_residual()));
  CHECK(std::isnan(r.max_condition()));
  r.residuals = r.conditions = {1, 4, 3};
  CHECK(r.max_residual() == 4);
  CHECK(r.max_condition() == 4);
}

TEST_CASE("eigen: values are sorted by angle in (-pi, pi], then radius") {
  const std::vector<Complex128> z{{-1, -0.0}, {-2, 0.0}, {0, 1}, {0, -1}, {3, 0}, {2, 0}, {-1, -1e-9}};
  CHECK(order_by_angle(z) == std::vector<int64_t>{6, 3, 5, 4, 2, 0, 1});
  CHECK(angle_of({-1, -0.0}) == std::numbers::pi);
}

TEST_CASE("eigen: Hermitian matrices give ascending values and orthonormal vectors") {
  for (int64_t n : {1, 2, 63, 100}) {
    auto a = random_matrix(n, 9 + n);
    std::vector<Complex128> h(n * n);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) h[i * n + j] = 0.5 * (a[i * n + j] + std::conj(a[j * n + i]));
    const auto r = eigen_hermitian(n, h);
    CHECK(r.residual < 30);
    CHECK(std::is_sorted(r.values.begin(), r.values.end()));
    double worst = 0;
    for (int64_t k = 0; k < n; ++k)
      for (int64_t l = 0; l < n; ++l) {
        Complex128 dot = 0, form = 0;
        for (int64_t i = 0; i < n; ++i) dot += std::conj(r.vectors[i * n + k]) * r.vectors[i * n + l];
        if (k == l)
          for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < n; ++j)
              form += std::conj(r.vectors[i * n + k]) * h[i * n + j] * r.vectors[j * n + k];
        worst = worse(worst, std::abs(dot - (k == l ? 1.0 : 0.0)));
        if (k == l) CHECK(std::abs(form - r.values[k]) < 1e-11);
      }
    CHECK(worst < 1e-13);
    if (n > 1) {
      h[1] += Complex128(0, 0.1);
      CHECK_THROWS_AS(eigen_hermitian(n, h), Error);
    }
  }
}

TEST_CASE("eigen: several threads at once give the bits of one") {
  std::vector<EigenResult> alone, together(4);
  for (uint64_t s = 0; s < 4; ++s) alone.push_back(eigen_general(33, random_matrix(33, s)));
  std::vector<std::thread> threads;
  for (uint64_t s = 0; s < 4; ++s)
    threads.emplace_back([&together, s] { together[s] = eigen_general(33, random_matrix(33, s)); });
  for (auto& t : threads) t.join();
  for (int s = 0; s < 4; ++s) {
    CHECK(alone[s].values == together[s].values);
    CHECK(alone[s].error_bounds == together[s].error_bounds);
  }
}

TEST_CASE("eigen: bad matrices are errors") {
  CHECK_THROWS_AS(eigen_general(2, std::vector<Complex128>(3)), Error);
  CHECK_THROWS_AS(eigen_general(0, std::vector<Complex128>()), Error);
  CHECK_THROWS_AS(eigen_general(2, std::vector<Complex128>{1, NAN, 0, 1}), Error);
  CHECK_THROWS_AS(eigen_general(1, std::vector<double>{INFINITY}), Error);
}
