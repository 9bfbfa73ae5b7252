#include "spectral/dplr.h"

#include <doctest/doctest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "spectral/eigen.h"
#include "spectral/hippo.h"
#include "spectral/secular.h"
#include "tensor/error.h"
#include "tensor/rng.h"
#include "tensor/worse.h"
#include "tests/spectral/text_fixture.h"

using namespace eigentrace;

namespace {

// HiPPO with every entry moved by relative noise, as training moves it.
struct Channel {
  std::vector<Complex128> lambda, p;
  double step = 0.01;
  DplrChannel view() const { return {lambda, p, step}; }
};

Channel noisy_hippo(int64_t n, double noise, uint64_t seed) {
  const HippoDplr h = hippo_dplr(n);
  Rng rng(seed, n);
  Channel c{h.lambda, h.p, std::exp(rng.uniform(std::log(1e-3), std::log(0.1)))};
  for (auto& x : c.lambda) x *= 1 + noise * rng.normal();
  for (auto& x : c.p) x *= 1 + noise * rng.normal();
  c.lambda = clip_real(c.lambda);
  return c;
}

// Largest |a − b| − bound over a one-to-one nearest matching; ≤ 0 means agreement.
double excess(const DplrEigenvalues& a, const DplrEigenvalues& b) {
  std::vector<char> used(b.values.size(), 0);
  double worst = -1;
  for (size_t k = 0; k < a.values.size(); ++k) {
    size_t best = 0;
    double distance = 1e300;
    for (size_t j = 0; j < b.values.size(); ++j)
      if (!used[j] && std::abs(a.values[k] - b.values[j]) < distance)
        distance = std::abs(a.values[k] - b.values[j]), best = j;
    used[best] = 1;
    worst = worse(worst, distance - a.error_bounds[k] - b.error_bounds[best]);
  }
  return worst;
}

double largest(const std::vector<double>& v) { return *std::max_element(v.begin(), v.end()); }

std::vector<Complex128> complex_of(const std::vector<double>& re, const std::vector<double>& im) {
  std::vector<Complex128> out;
  for (size_t k = 0; k < re.size(); ++k) out.emplace_back(re[k], im[k]);
  return out;
}

std::vector<Complex128> complex_of(const std::vector<double>& pairs) {
  std::vector<Complex128> out;
  for (size_t k = 0; k + 1 < pairs.size(); k += 2) out.emplace_back(pairs[k], pairs[k + 1]);
  return out;
}

std::vector<Complex128> column(const std::vector<Complex128>& matrix, int64_t states, int64_t width,
                               int64_t d) {
  std::vector<Complex128> out;
  for (int64_t n = 0; n < states; ++n) out.push_back(matrix[n * width + d]);
  return out;
}

}  // namespace

TEST_CASE("dplr: the Woodbury form is (2/Δ − A)⁻¹(2/Δ + A), and B̄ solves its system") {
  for (int64_t n : {1, 2, 7, 63}) {
    const Channel c = noisy_hippo(n, 0.1, 1);
    const auto a = dplr_state_matrix(c.view()), discrete = discretise(c.view()).dense();
    Rng rng(n);
    std::vector<Complex128> b(n);
    for (auto& x : b) x = {rng.normal(), rng.normal()};
    const auto input = discretise_input(c.view(), b);
    double error = 0, scale = 2 / c.step;
    for (int64_t i = 0; i < n; ++i) {
      Complex128 left_b = 2 / c.step * input[i];
      for (int64_t k = 0; k < n; ++k) left_b -= a[i * n + k] * input[k];
      error = worse(error, std::abs(left_b - 2.0 * b[i]));
      for (int64_t j = 0; j < n; ++j) {
        Complex128 left = 2 / c.step * discrete[i * n + j],
                   right = a[i * n + j] + (i == j ? 2 / c.step : 0.0);
        for (int64_t k = 0; k < n; ++k) left -= a[i * n + k] * discrete[k * n + j];
        error = worse(error, std::abs(left - right));
        scale = std::max(scale, std::abs(a[i * n + j]));
      }
    }
    CHECK(error < 1e-13 * n * scale);
    // apply is the dense product.
    auto x = b;
    discretise(c.view()).apply(x);
    for (int64_t i = 0; i < n; ++i) {
      Complex128 sum = 0;
      for (int64_t k = 0; k < n; ++k) sum += discrete[i * n + k] * b[k];
      CHECK(std::abs(sum - x[i]) < 1e-12 * n);
    }
  }
}

TEST_CASE("dplr: the three routes agree within their error bounds, which are tight away from HiPPO") {
  for (int64_t n : {1, 2, 7, 63, 100}) {
    for (double noise : {1e-3, 1e-2, 0.3}) {
      CAPTURE(n);
      CAPTURE(noise);
      const Channel c = noisy_hippo(n, noise, 3);
      const auto dense = dplr_eigenvalues(c.view(), DplrRoute::dense);
      const auto mapped = dplr_eigenvalues(c.view(), DplrRoute::mapped);
      const auto secular = dplr_eigenvalues(c.view(), DplrRoute::secular);
      CHECK(excess(dense, mapped) <= 0);
      CHECK(excess(mapped, secular) <= 0);
      CHECK(excess(dense, secular) <= 0);
      CHECK(secular.certified);
      CHECK_FALSE(mapped.certified);
      for (const auto* s : {&dense, &mapped, &secular}) {
        CHECK(largest(s->error_bounds) < 1e-8);
        CHECK(largest(s->residuals) < 30);
      }
      CHECK(largest(secular.conditions) == doctest::Approx(largest(mapped.conditions)).epsilon(1e-6));
    }
  }
}

TEST_CASE("dplr: a planted error lies outside the bounds") {
  const Channel c = noisy_hippo(63, 0.1, 3);
  Channel moved = c;
  moved.p[20] *= 1 + 1e-7;
  CHECK(excess(dplr_eigenvalues(c.view()), dplr_eigenvalues(moved.view())) > 0);
}

TEST_CASE("dplr: small HiPPO is solved exactly: λ = −1 … −N") {
  for (int64_t n : {1, 2, 7, 12}) {
    const HippoDplr h = hippo_dplr(n);
    const SecularResult s = secular_eigenvalues(h.lambda, h.p);
    CHECK(s.certified);
    std::vector<double> found;
    for (int64_t k = 0; k < n; ++k) found.push_back(s.values[k].real());
    std::sort(found.rbegin(), found.rend());
    // The stored Λ and P are HiPPO's only up to rounding, which the condition magnifies.
    for (int64_t k = 0; k < n; ++k)
      CHECK(std::abs(found[k] + k + 1.0) <
            1e-12 * n * *std::max_element(s.conditions.begin(), s.conditions.end()));
  }
}

TEST_CASE("dplr: HiPPO of 64 states is too ill-conditioned for double, and says so") {
  const Channel c = noisy_hippo(64, 0, 1);
  const auto e = dplr_eigenvalues(c.view());
  CHECK_FALSE(e.certified);
  CHECK(largest(e.conditions) > 1e12);
  CHECK(largest(e.error_bounds) > 0.1);
  CHECK(largest(e.residuals) < 30);
  const auto secular = dplr_eigenvalues(c.view(), DplrRoute::secular);
  CHECK_FALSE(secular.certified);
  CHECK(largest(secular.error_bounds) > 1e300);
}

TEST_CASE("dplr: HiPPO as float32 stores it is certified, and is not HiPPO's spectrum") {
  for (int64_t n : {32, 64, 100}) {
    Channel c = noisy_hippo(n, 0, 1);
    c.step = 0.01;
    // Through memory: GCC 12.2's vectoriser drops the rounding of double → float → double on pairs at -O2.
    const std::vector<std::complex<float>> lambda(c.lambda.begin(), c.lambda.end()),
        p(c.p.begin(), c.p.end());
    c.lambda.assign(lambda.begin(), lambda.end()), c.p.assign(p.begin(), p.end());
    const auto e = dplr_eigenvalues(c.view()), dense = dplr_eigenvalues(c.view(), DplrRoute::dense);
    CHECK(e.certified);
    CHECK(largest(e.error_bounds) < 1e-5);
    CHECK(excess(e, dense) <= 0);
    // HiPPO's own eigenvalues, −1 … −N, are real and far away.
    double farthest = 0;
    for (const Complex128& z : e.values) {
      double nearest = 1e300;
      for (int64_t k = 1; k <= n; ++k)
        nearest = std::min(nearest, std::abs(z - bilinear(-static_cast<double>(k), c.step)));
      farthest = std::max(farthest, nearest);
    }
    CHECK(farthest > 0.1);
  }
}

TEST_CASE("dplr: states that do not couple and states that coincide are exact eigenvalues") {
  const std::vector<Complex128> lambda{{-1, 2}, {-1, 2}, {-1, 2}, {-0.5, 0}, {-3, 1}},
      p{1, {0, 2}, 0, 0, 1.5};
  const auto s = dplr_eigenvalues({lambda, p, 0.1}, DplrRoute::secular);
  const auto dense = dplr_eigenvalues({lambda, p, 0.1}, DplrRoute::dense);
  CHECK(s.certified);
  CHECK(s.values.size() == 5);
  // The double eigenvalue of the dense matrix is found to a few roundings only.
  double sum = 0;
  for (const auto& z : s.values) {
    double nearest = 1e300;
    for (const auto& w : dense.values) nearest = std::min(nearest, std::abs(z - w));
    sum += nearest;
  }
  CHECK(sum < 1e-13);
  CHECK(std::count(s.values.begin(), s.values.end(), bilinear({-1, 2}, 0.1)) == 2);
  CHECK(std::count(s.values.begin(), s.values.end(), bilinear({-0.5, 0}, 0.1)) == 1);
}

TEST_CASE("dplr: a secular disc holds the eigenvalue of a problem with known roots") {
  // f with poles −1, −4 and roots r1, r2: the weights follow from the residues of Π(λ−r)/Π(λ−Λ).
  const double r1 = -1.5, r2 = -6.25;
  const double w1 = (-1 - r1) * (-1 - r2) / (-1.0 + 4.0), w2 = (-4 - r1) * (-4 - r2) / (-4.0 + 1.0);
  REQUIRE(w1 > 0);
  REQUIRE(w2 > 0);
  const std::vector<Complex128> lambda{-1, -4}, p{std::sqrt(w1), std::sqrt(w2)};
  const SecularResult s = secular_eigenvalues(lambda, p);
  CHECK(s.certified);
  for (double truth : {r1, r2}) {
    double nearest = 1e300, radius = 0;
    for (int k = 0; k < 2; ++k)
      if (std::abs(s.values[k] - truth) < nearest)
        nearest = std::abs(s.values[k] - truth), radius = s.radii[k];
    CHECK(nearest < radius + 4e-15);  // √w is rounded
    CHECK(radius < 1e-13);
  }
}

TEST_CASE("dplr: secular discs hold what LAPACK finds for poles of any spread, weight and closeness") {
  int certified = 0;
  for (uint64_t seed = 0; seed < 60; ++seed) {
    CAPTURE(seed);
    Rng rng(seed);
    const int64_t n = 1 + rng.below(40);
    const double spread = std::pow(10.0, rng.uniform(-3, 3)), weight = std::pow(10.0, rng.uniform(-4, 1));
    std::vector<Complex128> lambda, p;
    for (int64_t k = 0; k < n; ++k) {
      const bool near = k > 0 && rng.below(8) == 0;  // a pole beside the one before
      lambda.push_back(near ? lambda[k - 1] + 1e-6 * spread * Complex128(rng.normal(), rng.normal())
                            : spread * Complex128(-rng.uniform(), rng.normal()));
      p.push_back(rng.below(8) == 0 ? 0.0
                                    : std::sqrt(spread) * weight * Complex128(rng.normal(), rng.normal()));
    }
    const SecularResult s = secular_eigenvalues(lambda, p);
    const EigenResult e = eigen_general(n, dplr_state_matrix({lambda, p, 1.0}));
    REQUIRE(static_cast<int64_t>(s.values.size()) == n);
    certified += s.certified;
    std::vector<char> used(n, 0);
    for (int64_t k = 0; k < n && s.certified; ++k) {
      int64_t best = -1;
      for (int64_t j = 0; j < n; ++j)
        if (!used[j] &&
            (best < 0 || std::abs(e.values[j] - s.values[k]) < std::abs(e.values[best] - s.values[k])))
          best = j;
      used[best] = 1;
      CHECK(std::abs(e.values[best] - s.values[k]) <= s.radii[k] + 4 * e.error_bounds[best]);
    }
  }
  CHECK(certified >= 55);
}

TEST_CASE("dplr: log|μ| is exact where |μ| rounds to one") {
  CHECK(log_bilinear_radius({-1e-18, 3}, 0.1) == doctest::Approx(-1e-19 / (1 + 0.15 * 0.15)).epsilon(1e-14));
  CHECK(std::abs(bilinear({-1e-18, 3}, 0.1)) == doctest::Approx(1));
  CHECK(log_bilinear_radius({-20, 0}, 0.1) == -INFINITY);
  for (Complex128 z : {Complex128(-3, 100), Complex128(-19.5, 0.1), Complex128(-1e6, 1)})
    CHECK(log_bilinear_radius(z, 0.1) ==
          doctest::Approx(std::log(std::abs(bilinear(z, 0.1)))).epsilon(1e-12));
}

TEST_CASE("dplr: eigenvalues of all channels equal the published code's exact ones") {
  const auto cases = read_text_cases(EIGENTRACE_TEST_DATA "/spectral/s4_channels.txt");
  REQUIRE(cases.size() == 4);
  for (const TextCase& f : cases) {
    CAPTURE(f.name);
    const int64_t width = static_cast<int64_t>(f["log_step"].size()),
                  states = static_cast<int64_t>(f["lambda_re"].size()) / width;
    const auto lambda = clip_real(complex_of(f["lambda_re"], f["lambda_im"])), p = complex_of(f["p"]);
    const auto expected = complex_of(f["eig_re"], f["eig_im"]);
    for (DplrRoute route : {DplrRoute::automatic, DplrRoute::mapped, DplrRoute::dense}) {
      DplrOptions options;
      options.route = route;
      const DplrSpectrum s = dplr_spectrum(states, lambda, p, f["log_step"], options);
      CHECK(s.certified == (route == DplrRoute::automatic ? width : 0));
      CHECK(s.max_residual < 30);
      CHECK(s.max_error_bound < 1e-10);
      REQUIRE(static_cast<int64_t>(s.spectra.size()) == width);
      double worst = 0, log_worst = 0;
      for (int64_t d = 0; d < width; ++d)
        for (int64_t n = 0; n < states; ++n) {
          const Complex128 truth = expected[d * states + n];
          worst = worse(worst, std::abs(s.spectra[d].values[n] - truth));
          log_worst = worse(log_worst, std::abs(s.log_abs()[d * states + n] - std::log(std::abs(truth))));
        }
      CHECK(worst < 1e-12);
      CHECK(log_worst < 1e-11);
    }
  }
}

TEST_CASE("dplr: the realisation's kernel reproduces the published layer's output") {
  for (const TextCase& f : read_text_cases(EIGENTRACE_TEST_DATA "/spectral/s4_channels.txt")) {
    if (f.arrays.count("mixer_in") == 0) continue;
    CAPTURE(f.name);
    const int64_t width = static_cast<int64_t>(f["log_step"].size()),
                  states = static_cast<int64_t>(f["lambda_re"].size()) / width;
    const int64_t batch = 2, length = static_cast<int64_t>(f["mixer_in"].size()) / (batch * width);
    const auto lambda = clip_real(complex_of(f["lambda_re"], f["lambda_im"])), p = complex_of(f["p"]);
    const auto b = complex_of(f["b"]), c = complex_of(f["c"]);
    double error = 0, size = 0;
    for (int64_t d = 0; d < width; ++d) {
      const auto l = column(lambda, states, width, d), low_rank = column(p, states, width, d);
      const auto r = dplr_realisation({l, low_rank, std::exp(f["log_step"][d])}, column(b, states, width, d),
                                      column(c, states, width, d), length);
      CHECK(r.condition >= 1);
      const auto kernel = dplr_kernel(r, length);
      for (int64_t s = 0; s < batch; ++s)
        for (int64_t t = 0; t < length; ++t) {
          double y = f["d"][d] * f["mixer_in"][(s * length + t) * width + d];
          for (int64_t k = 0; k <= t; ++k) y += kernel[k] * f["mixer_in"][(s * length + t - k) * width + d];
          error = worse(error, std::abs(y - f["mixer_out"][(s * length + t) * width + d]));
          size = std::max(size, std::abs(y));
        }
    }
    CHECK(error < 1e-11 * size);
  }
}

TEST_CASE("dplr: the kernel equals its generating function at the roots of unity") {
  // Σ_l Ω^l C̄ Ā^l B̄ over l < L at Ω^L = 1 is conj(C)(I − ĀΩ)⁻¹B̄: the truncation undoes the read-out's power.
  for (int64_t length : {1, 2, 63, 100}) {
    const int64_t n = 7;
    const Channel c = noisy_hippo(n, 0.1, 8);
    Rng rng(length);
    std::vector<Complex128> b(n), read(n);
    for (int64_t k = 0; k < n; ++k)
      b[k] = {rng.normal(), rng.normal()}, read[k] = {rng.normal(), rng.normal()};
    const auto r = dplr_realisation(c.view(), b, read, length);
    const auto a = r.a.dense();
    std::vector<Complex128> x = r.b, terms;
    double total = 0;
    for (int64_t l = 0; l < length; ++l) {
      Complex128 sum = 0;
      for (int64_t k = 0; k < n; ++k) sum += r.c[k] * x[k];
      terms.push_back(sum), total += std::abs(sum);
      r.a.apply(x);
    }
    const auto kernel = dplr_kernel(r, length);
    for (int64_t l = 0; l < length; ++l) CHECK(kernel[l] == doctest::Approx(terms[l].real()).epsilon(1e-12));
    for (int64_t k = 0; k < length; k += 7) {
      const Complex128 omega = std::polar(1.0, -2 * std::numbers::pi * k / length);
      Complex128 sum = 0, power = 1;
      for (const auto& term : terms) sum += term * power, power *= omega;
      // Neumann-free check: y = (I − ĀΩ)⁻¹B̄ by Gaussian elimination.
      std::vector<Complex128> m(n * n), y = r.b;
      for (int64_t i = 0; i < n * n; ++i) m[i] = (i % (n + 1) == 0 ? 1.0 : 0.0) - a[i] * omega;
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = i + 1; j < n; ++j) {
          const Complex128 factor = m[j * n + i] / m[i * n + i];
          for (int64_t q = i; q < n; ++q) m[j * n + q] -= factor * m[i * n + q];
          y[j] -= factor * y[i];
        }
      for (int64_t i = n; i-- > 0;) {
        for (int64_t q = i + 1; q < n; ++q) y[i] -= m[i * n + q] * y[q];
        y[i] /= m[i * n + i];
      }
      Complex128 direct = 0;
      for (int64_t i = 0; i < n; ++i) direct += std::conj(read[i]) * y[i];
      CHECK(std::abs(sum - direct) < 1e-12 * r.condition * (1 + total));
    }
  }
}

TEST_CASE(
    "dplr: a layer's spectrum has the same bits for one and two threads, any choice of channels, shared or "
    "not") {
  const int64_t states = 20, width = 9;
  Rng rng(1);
  const HippoDplr h = hippo_dplr(states);
  std::vector<Complex128> lambda(states * width), p(states * width);
  std::vector<double> log_step(width);
  for (int64_t d = 0; d < width; ++d) {
    log_step[d] = std::log(rng.uniform(1e-3, 0.1));
    for (int64_t n = 0; n < states; ++n) {
      const double noise = d < 4 ? 0.05 : 0.05 + 0.01 * d;  // channels 0 to 3 are equal
      lambda[n * width + d] = h.lambda[n] * (1 + noise * std::sin(1.0 + n));
      p[n * width + d] = h.p[n] * (1 + noise * std::cos(2.0 * n));
    }
  }
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  int64_t calls = 0, last = 0;
  double left = -1;
  DplrOptions options;
  options.progress = [&](int64_t done, int64_t total, double seconds_left) {
    ++calls, last = done, left = seconds_left;
    CHECK(total == width);
  };
  const auto one = dplr_spectrum(states, lambda, p, log_step, options);
  omp_set_num_threads(2);
  const auto two = dplr_spectrum(states, lambda, p, log_step, options);
  omp_set_num_threads(before);
  CHECK(calls == 2 * width);
  CHECK(last == width);
  CHECK(left == 0);
  CHECK(one.log_abs() == two.log_abs());
  CHECK(one.arg() == two.arg());
  CHECK(one.certified == width);
  for (int64_t d = 0; d < width; ++d) {
    const auto l = column(lambda, states, width, d), low_rank = column(p, states, width, d);
    CHECK(dplr_eigenvalues({l, low_rank, std::exp(log_step[d])}).log_abs == one.spectra[d].log_abs);
  }
  options.progress = nullptr, options.channels = 3;
  const auto some = dplr_spectrum(states, lambda, p, log_step, options);
  CHECK(some.channels == std::vector<int64_t>{0, 3, 6});
  CHECK(some.spectra[2].log_abs == one.spectra[6].log_abs);
  CHECK(estimated_seconds(64, 100, DplrRoute::mapped) > 0);
}

TEST_CASE("dplr: bad input is an error") {
  const std::vector<Complex128> one{{-0.5, 1}}, two{{-0.5, 1}, {-0.5, 2}}, pole{20}, bad{{NAN, 0}};
  const std::vector<double> step{std::log(0.1)};
  CHECK_THROWS_AS(discretise({one, two, 0.1}), Error);
  CHECK_THROWS_AS(discretise({one, one, 0}), Error);
  CHECK_THROWS_AS(discretise({pole, one, 0.1}), Error);
  CHECK_THROWS_AS(dplr_eigenvalues({bad, one, 0.1}), Error);
  CHECK_THROWS_AS(secular_eigenvalues(one, two), Error);
  CHECK_THROWS_AS(dplr_spectrum(2, one, one, step), Error);
  CHECK_THROWS_AS(dplr_spectrum(1, bad, one, step), Error);
  DplrOptions options;
  options.channels = 2;
  CHECK_THROWS_AS(dplr_spectrum(1, one, one, step, options), UsageError);
  CHECK_THROWS_AS(dplr_realisation({one, one, 0.1}, one, two, 4), Error);
  CHECK_THROWS_AS(dplr_realisation({one, one, 0.1}, one, one, 0), Error);
  // |μ| = 1 with μ = 1 exactly: I − Ā^L is singular.
  const std::vector<Complex128> still{0}, none{0};
  CHECK_THROWS_AS(dplr_realisation({still, none, 0.1}, one, one, 4), Error);
}
