// The exact reading against eigenvalues computed from the definition.
#include "spectral/reading.h"

#include <doctest/doctest.h>

#include <cmath>
#include <complex>

#include "spectral/dplr.h"
#include "tensor/error.h"
#include "tensor/rng.h"
#include "tensor/worse.h"
#include "tests/spectral/systems.h"

using namespace eigentrace;

namespace {

double sum(const std::vector<double>& values) {
  double total = 0;
  for (const double value : values) total += value;
  return total;
}

}  // namespace

TEST_CASE("reading: attention's λ_i is η_{i−1}/η_i, entry t being step t + 1") {
  const TestSystem test = linear_system(63, DType::f64, 21);
  const LayerSpectrum spectrum = read_spectrum(test.system, 3);
  CHECK(spectrum.layer == 3);
  CHECK(spectrum.kind == SpectrumKind::time_varying);
  CHECK(spectrum.shape == std::vector<int64_t>{2, 62, 2});
  CHECK(spectrum.first_step == 1);
  CHECK(spectrum.has_gauge);
  const auto& maps = std::get<Factored>(test.system.maps);
  const auto q = maps.q.to_vector<double>(), k = maps.k.to_vector<double>();
  const int64_t steps = 63, heads = 2, n = maps.q.dim(3);
  const auto eta = [&](int64_t b, int64_t i, int64_t h) {
    double total = 0;
    for (int64_t j = 0; j <= i; ++j)
      for (int64_t s = 0; s < n; ++s)
        total += q[size_t(((b * steps + i) * heads + h) * n + s)] *
                 k[size_t(((b * steps + j) * heads + h) * n + s)];
    return total;
  };
  double worst = 0;
  for (int64_t b = 0; b < 2; ++b)
    for (int64_t i = 1; i < steps; ++i)
      for (int64_t h = 0; h < heads; ++h)
        worst = worse(worst, std::abs(std::exp(spectrum.log_abs[size_t((b * 62 + i - 1) * heads + h)]) -
                                      eta(b, i - 1, h) / eta(b, i, h)));
  CHECK(worst < 1e-13);
  // Each head's statistics are those of its own column.
  const LayerStatistics statistics = layer_statistics(spectrum);
  REQUIRE(statistics.heads.size() == 2);
  CHECK(statistics.heads[1].count == 2 * 62);
  CHECK(statistics.heads[1].log_radius.max == doctest::Approx([&] {
                                                double most = -1e300;
                                                for (size_t at = 1; at < spectrum.log_abs.size(); at += 2)
                                                  most = std::max(most, spectrum.log_abs[at]);
                                                return most;
                                              }())
                                                  .epsilon(1e-15));
  CHECK(sum(statistics.all.radius_percent.mean) == doctest::Approx(100));
}

TEST_CASE("reading: with the normaliser in the read-out every λ is 1") {
  TestSystem test = norm_system(63, DType::f64, 21);
  std::get<NormaliserRatio>(test.system.lambda).gauge = Gauge::readout_normalised;
  const LayerSpectrum spectrum = read_spectrum(test.system, 0);
  CHECK(spectrum.gauge == Gauge::readout_normalised);
  CHECK(layer_statistics(spectrum).all.unit_share == 1);
}

TEST_CASE("reading: float32 log η gives λ in double, differences not rounded again") {
  const TestSystem test = norm_system(100, DType::f32, 21);
  const auto log_eta = std::get<NormaliserRatio>(test.system.lambda).log_eta.to_vector<float>();
  const LayerSpectrum spectrum = read_spectrum(test.system, 0);
  CHECK(spectrum.log_abs[2] == double(log_eta[2]) - double(log_eta[4]));
}

TEST_CASE("reading: an overflowed η makes λ zero, then infinite, then unknown, and statistics say so") {
  Tensor log_eta = Tensor::from(std::vector<double>{1, HUGE_VAL, 2, HUGE_VAL, HUGE_VAL, 3}, {1, 6, 1});
  TestSystem test = norm_system(63, DType::f64, 1);
  test.system.u = Tensor::zeros({1, 6, 1, 2}, DType::f64);
  auto& maps = std::get<Factored>(test.system.maps);
  maps.q = maps.k = Tensor::zeros({1, 6, 1, 2}, DType::f64);
  test.system.lambda = NormaliserRatio{log_eta};
  const LayerSpectrum spectrum = read_spectrum(test.system, 0);
  CHECK(spectrum.log_abs[0] == -HUGE_VAL);
  CHECK(spectrum.log_abs[1] == HUGE_VAL);
  CHECK(std::isnan(spectrum.log_abs[3]));
  const LayerStatistics statistics = layer_statistics(spectrum);
  CHECK(statistics.all.zeros == 2);
  CHECK(statistics.all.non_finite == 3);
}

TEST_CASE("reading: fixed systems give one set of eigenvalues, angles in (−π, π]") {
  TestSystem lru = lru_system(63, DType::f64, 5);
  auto& diagonal = std::get<Diagonal>(lru.system.lambda);
  auto angles = diagonal.arg.to_vector<double>();
  const double before = angles[2];
  angles[2] += 2 * std::acos(-1.0);
  diagonal.arg.assign(angles);
  const LayerSpectrum spectrum = read_spectrum(lru.system, 0);
  CHECK(spectrum.shape == std::vector<int64_t>{6});
  CHECK(spectrum.arg[2] == doctest::Approx(before).epsilon(1e-14));
  CHECK(layer_statistics(spectrum).heads.empty());

  const TestSystem lti = pseudo_lti_system(63, DType::f64, 5);
  const LayerSpectrum heads = read_spectrum(lti.system, 0);
  CHECK(heads.kind == SpectrumKind::fixed_per_head);
  CHECK(layer_statistics(heads).heads.size() == 2);
  CHECK_FALSE(layer_statistics(heads).all.time_varying);
}

TEST_CASE("reading: S4 gives the eigenvalues of each channel's own matrix") {
  const TestSystem test = s4_system(63, DType::f64, 5);
  ReadingOptions options;
  const LayerSpectrum spectrum = read_spectrum(test.system, 0, options);
  CHECK(spectrum.shape == std::vector<int64_t>{3, 4});
  const auto& dplr = std::get<Dplr>(test.system.lambda);
  for (int64_t c = 0; c < 3; ++c) {
    std::vector<std::complex<double>> lambda(4), p(4);
    for (int64_t s = 0; s < 4; ++s) {
      const auto at = [&](const Tensor& tensor) { return tensor.to_vector<double>()[size_t(s * 3 + c)]; };
      lambda[size_t(s)] = {at(dplr.lambda.re), at(dplr.lambda.im)};
      p[size_t(s)] = {at(dplr.p.re), at(dplr.p.im)};
    }
    const auto dense =
        discretise({lambda, p, std::exp(dplr.log_step.to_vector<double>()[size_t(c)])}).dense();
    std::complex<double> trace = 0, eigenvalues = 0;
    for (size_t s = 0; s < 4; ++s) {
      trace += dense[s * 5];
      eigenvalues +=
          std::polar(std::exp(spectrum.log_abs[size_t(c) * 4 + s]), spectrum.arg[size_t(c) * 4 + s]);
    }
    CHECK(std::abs(trace - eigenvalues) < 1e-12);
  }
  CHECK(spectrum.max_residual < 30);
  CHECK(spectrum.max_condition >= 1);
  options.channels = 2;
  const LayerSpectrum two = read_spectrum(test.system, 0, options);
  CHECK(two.shape == std::vector<int64_t>{2, 4});
  CHECK(two.channels.size() == 2);
}

TEST_CASE("reading: of a Mamba-1 layer too large to keep, whole series are kept and all are counted") {
  const TestSystem test = mamba1_system(100, DType::f64, 5);
  const LayerSpectrum whole = read_spectrum(test.system, 0);
  CHECK(whole.shape == std::vector<int64_t>{2, 100, 12});
  CHECK_FALSE(whole.sampled());
  ReadingOptions options;
  options.max_values = 1000;  // 5 of 12 series
  const LayerSpectrum part = read_spectrum(test.system, 0, options);
  CHECK(part.shape == std::vector<int64_t>{2, 100, 5});
  CHECK(part.sampled());
  for (int64_t i = 0; i < 200; ++i)
    for (size_t m = 0; m < 5; ++m)
      CHECK(part.log_abs[size_t(i) * 5 + m] == whole.log_abs[size_t(i * 12 + part.series[m])]);
  const LayerStatistics sampled = layer_statistics(part), exact = layer_statistics(whole);
  CHECK(sampled.sampled);
  CHECK(sampled.all.count == exact.all.count);
  for (size_t k = 0; k < exact.all.radius_percent.mean.size(); ++k) {
    CHECK(sampled.all.radius_percent.mean[k] == doctest::Approx(exact.all.radius_percent.mean[k]));
    CHECK(sampled.all.radius_percent.std[k] == doctest::Approx(exact.all.radius_percent.std[k]));
  }
  CHECK(sampled.all.spectral_radius == exact.all.spectral_radius);
  CHECK_THROWS_AS(layer_statistics(part, Binning::published), Error);
}

TEST_CASE("reading: a Mamba-1 layer with broken numbers is counted the same whole or in part") {
  const TestSystem test = mamba1_system(100, DType::f64, 6);
  const auto& outer = std::get<Outer>(test.system.lambda);
  auto a = outer.a.to_vector<double>(), delta = outer.delta.to_vector<double>();
  a[1] = std::nan(""), a[4] = 0.5, a[7] = 0;  // unknown, expanding, lossless
  delta[10] = HUGE_VAL, delta[20] = -1, delta[31] = 0, delta[47] = std::nan("");
  outer.a.assign(a), outer.delta.assign(delta);
  ReadingOptions options;
  options.max_values = 1000;
  const SpectrumStatistics part = layer_statistics(read_spectrum(test.system, 0, options)).all;
  const SpectrumStatistics whole = layer_statistics(read_spectrum(test.system, 0)).all;
  CHECK(part.non_finite == whole.non_finite);
  CHECK(part.zeros == whole.zeros);
  CHECK(part.expanding_share == doctest::Approx(whole.expanding_share));
  CHECK(part.unit_share == doctest::Approx(whole.unit_share));
  CHECK(part.log_spectral_radius == whole.log_spectral_radius);
  for (size_t k = 0; k < whole.radius_percent.mean.size(); ++k)
    CHECK(part.radius_percent.mean[k] == doctest::Approx(whole.radius_percent.mean[k]));
}

TEST_CASE("reading: a sample is seeded, without repetition, and keeps each eigenvalue's step and head") {
  const TestSystem test = mamba2_system(63, DType::f64, 5);
  const LayerSpectrum spectrum = read_spectrum(test.system, 0);
  CHECK(spectrum.first_step == 0);
  const SpectrumSample a = sample_spectrum(spectrum, 40, 1), b = sample_spectrum(spectrum, 40, 1);
  CHECK(a.log_abs == b.log_abs);
  CHECK(a.log_abs != sample_spectrum(spectrum, 40, 2).log_abs);
  REQUIRE(a.log_abs.size() == 40);
  for (size_t n = 0; n < 40; ++n) {
    const int64_t at = (a.sequence[n] * 63 + a.step[n]) * 4 + a.head[n];
    CHECK(a.log_abs[n] == spectrum.log_abs[size_t(at)]);
    if (n > 0)
      CHECK(std::tuple(a.sequence[n - 1], a.step[n - 1], a.head[n - 1]) <
            std::tuple(a.sequence[n], a.step[n], a.head[n]));
  }
  CHECK(sample_spectrum(spectrum, 1 << 20).log_abs.size() == spectrum.log_abs.size());
}

TEST_CASE("reading: what does not fit together is an error that names the field") {
  TestSystem test = mamba1_system(63, DType::f64, 5);
  std::get<Outer>(test.system.lambda).a = Tensor::zeros({3, 4}, DType::f64);
  CHECK_THROWS_WITH_AS(read_spectrum(test.system, 0),
                       doctest::Contains("Realisation: a: expected f32 or f64 [4, 3]"), Error);
  test = lru_system(63, DType::f64, 5);
  test.system.lambda = ScalarDecay{Tensor::zeros({3}, DType::f64)};
  CHECK_THROWS_WITH_AS(read_spectrum(test.system, 0), doctest::Contains("Dense goes with Diagonal"), Error);
}

TEST_CASE("reading: a thinned spectrum keeps whole sequences, its bins and shares count every eigenvalue") {
  LayerSpectrum spectrum;
  spectrum.kind = SpectrumKind::time_varying, spectrum.shape = {5, 7, 2}, spectrum.first_step = 1;
  Rng rng(3, 1);
  for (int i = 0; i < 70; ++i) spectrum.log_abs.push_back(rng.uniform(-4, 1));
  spectrum.log_abs[69] = 3, spectrum.log_abs[68] = 0, spectrum.log_abs[67] = -INFINITY,
  spectrum.log_abs[66] = NAN;
  spectrum.full_count = 70;
  const LayerSpectrum part = thinned(spectrum, 30);
  CHECK(part.shape == std::vector<int64_t>{2, 7, 2});
  CHECK(part.first_step == 1);
  CHECK(part.sampled());
  CHECK(std::equal(part.log_abs.begin(), part.log_abs.end(), spectrum.log_abs.begin()));
  CHECK(thinned(spectrum, 1).shape[0] == 1);
  CHECK_FALSE(thinned(spectrum, 70).sampled());
  const SpectrumStatistics all = layer_statistics(spectrum).all, counted = layer_statistics(part).all;
  CHECK(counted.count == 70);
  CHECK(counted.non_finite == 1);
  CHECK(counted.zeros == 1);
  CHECK(counted.expanding_share == all.expanding_share);
  CHECK(counted.unit_share == all.unit_share);
  CHECK(counted.spectral_radius == all.spectral_radius);
  for (size_t k = 0; k < all.radius_percent.mean.size(); ++k) {
    CHECK(counted.radius_percent.mean[k] == doctest::Approx(all.radius_percent.mean[k]).epsilon(1e-12));
    CHECK(counted.radius_percent.std[k] == doctest::Approx(all.radius_percent.std[k]).epsilon(1e-12));
  }
}

TEST_CASE("reading: S4's channels are thinned evenly and keep their numbers") {
  LayerSpectrum spectrum;
  spectrum.kind = SpectrumKind::fixed_per_channel, spectrum.shape = {6, 3};
  for (int i = 0; i < 18; ++i)
    spectrum.log_abs.push_back(-0.1 * i), spectrum.arg.push_back(0.1 * i), spectrum.channels.push_back(0);
  spectrum.channels = {0, 2, 4, 6, 8, 10};
  spectrum.full_count = 18;
  const LayerSpectrum part = thinned(spectrum, 9);
  CHECK(part.shape == std::vector<int64_t>{3, 3});
  CHECK(part.channels == std::vector<int64_t>{0, 4, 8});
  CHECK(part.log_abs[3] == spectrum.log_abs[6]);
  CHECK(part.arg[3] == spectrum.arg[6]);
  CHECK(layer_statistics(part).all.radius_percent.mean == layer_statistics(spectrum).all.radius_percent.mean);
}
