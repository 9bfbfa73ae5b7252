#include "spectral/hippo.h"

#include <doctest/doctest.h>

#include <cmath>

#include "spectral/eigen.h"
#include "tensor/error.h"
#include "tensor/rng.h"
#include "tensor/worse.h"
#include "tests/spectral/hippo_reference.h"

using namespace eigentrace;

namespace {

// max |V (diag(Λ) − PP*) V* − A| / max |A|
double reconstruction_error(const HippoDplr& h) {
  const int64_t n = h.n;
  const std::vector<double> a = hippo_legs(n);
  std::vector<Complex128> left(n * n);
  for (int64_t i = 0; i < n; ++i) {
    Complex128 row_p = 0;
    for (int64_t k = 0; k < n; ++k) row_p += h.v[i * n + k] * h.p[k];
    for (int64_t k = 0; k < n; ++k)
      left[i * n + k] = h.v[i * n + k] * h.lambda[k] - row_p * std::conj(h.p[k]);
  }
  double error = 0, size = 0;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) {
      Complex128 entry = 0;
      for (int64_t k = 0; k < n; ++k) entry += left[i * n + k] * std::conj(h.v[j * n + k]);
      error = worse(error, std::abs(entry - a[i * n + j])), size = std::max(size, std::abs(a[i * n + j]));
    }
  return error / size;
}

}  // namespace

TEST_CASE("hippo: eigenvalues and phase-free numbers equal the published initialiser's") {
  for (const HippoReference& r : hippo_references) {
    CAPTURE(r.n);
    const HippoDplr h = hippo_dplr(r.n);
    const double scale = std::abs(r.lambda_im.front());
    for (int k = 0; k < r.n; ++k) {
      CHECK(h.lambda[k].real() == -0.5);
      CHECK(std::abs(h.lambda[k].imag() - r.lambda_im[k]) < 1e-14 * scale);
      CHECK(std::abs(std::abs(h.p[k]) - r.abs_p[k]) < 1e-12 * r.abs_p.front());
      CHECK(std::abs(std::abs(h.b[k]) - r.abs_b[k]) < 1e-12 * r.abs_b.front());
      CHECK(std::abs(std::conj(h.p[k]) * h.b[k] - r.conj_p_b[k]) < 1e-12 * r.conj_p_b.front());
    }
  }
}

TEST_CASE("hippo: P and B are the published ones up to one sign per state") {
  const HippoDplr h = hippo_dplr(16);
  for (int k = 0; k < 16; ++k) {
    const Complex128 p(hippo16_p_re[k], hippo16_p_im[k]), b(hippo16_b_re[k], hippo16_b_im[k]);
    const double sign = (h.p[k] * std::conj(p)).real() > 0 ? 1 : -1;
    CHECK(std::abs(h.p[k] - sign * p) < 1e-12);
    CHECK(std::abs(h.b[k] - sign * b) < 1e-12);
    CHECK(h.v[k].imag() == 0);
    CHECK(h.v[k].real() > 0);
  }
}

TEST_CASE("hippo: V (diag(Λ) − PP*) V* is the HiPPO-LegS matrix") {
  for (int64_t n : {1, 2, 7, 63, 100}) {
    CAPTURE(n);
    CHECK(reconstruction_error(hippo_dplr(n)) < 1e-13);
  }
  HippoDplr wrong = hippo_dplr(7);
  wrong.p[3] *= 1.0001;
  CHECK(reconstruction_error(wrong) > 1e-6);
}

TEST_CASE("hippo: S5's blocks tile one block's eigenvalues and keep the half below the axis") {
  const HippoBlocks eight = hippo_blocks(16, 8, true);
  CHECK(eight.states() == 8);
  for (const auto& l : eight.lambda) {
    CHECK(l.real() == -0.5);
    CHECK(l.imag() == doctest::Approx(-0.8660254037844386));
  }
  const HippoBlocks two = hippo_blocks(16, 2, true), full = hippo_blocks(16, 2, false);
  CHECK(full.states() == 16);
  for (int k = 0; k < 8; ++k) {
    const double expected = hippo_references[0].lambda_im[k];
    CHECK(full.lambda[k].imag() == doctest::Approx(expected));
    CHECK(full.lambda[8 + k].imag() == doctest::Approx(expected));
    if (k < 4) {
      CHECK(two.lambda[k].imag() == doctest::Approx(expected));
      CHECK(two.lambda[4 + k].imag() == doctest::Approx(expected));
    }
  }
}

TEST_CASE("hippo: V* B0 and C0 V equal products with the dense block-diagonal V") {
  Rng rng(2);
  for (bool conj_sym : {true, false}) {
    const HippoBlocks h = hippo_blocks(12, 3, conj_sym);
    const int64_t n = h.states(), columns = 5;
    // Through the dense block-diagonal V.
    std::vector<Complex128> dense(12 * n);
    for (int64_t q = 0; q < 3; ++q)
      for (int64_t i = 0; i < h.block; ++i)
        for (int64_t k = 0; k < h.kept; ++k)
          dense[(q * h.block + i) * n + q * h.kept + k] = h.v[i * h.kept + k];
    std::vector<double> b(12 * columns);
    std::vector<Complex128> c(columns * 12);
    for (double& x : b) x = rng.normal();
    for (auto& x : c) x = {rng.normal(), rng.normal()};
    const auto vb = h.adjoint_times(b, columns), cv = h.times(c, columns);
    for (int64_t k = 0; k < n; ++k)
      for (int64_t j = 0; j < columns; ++j) {
        Complex128 left = 0, right = 0;
        for (int64_t i = 0; i < 12; ++i) {
          left += std::conj(dense[i * n + k]) * b[i * columns + j];
          right += c[j * 12 + i] * dense[i * n + k];
        }
        CHECK(std::abs(vb[k * columns + j] - left) < 1e-13);
        CHECK(std::abs(cv[j * n + k] - right) < 1e-13);
      }
  }
}

TEST_CASE("hippo: sizes that cannot be are errors") {
  CHECK_THROWS_AS(hippo_dplr(0), Error);
  CHECK_THROWS_AS(hippo_blocks(16, 3, false), Error);
  CHECK_THROWS_AS(hippo_blocks(12, 4, true), Error);
  CHECK_THROWS_AS(hippo_blocks(16, 2, true).adjoint_times(std::vector<double>(15), 1), Error);
}
