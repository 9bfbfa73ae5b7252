#include "spectral/statistics.h"

#include <doctest/doctest.h>

#include <cmath>
#include <map>
#include <numbers>
#include <set>

#include "tensor/error.h"
#include "tensor/rng.h"

using namespace eigentrace;

namespace {

constexpr double inf = std::numeric_limits<double>::infinity();
constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();
constexpr double pi = std::numbers::pi;

std::vector<double> logs(const std::vector<double>& radii) {
  std::vector<double> out;
  for (double r : radii) out.push_back(std::log(r));
  return out;
}

double sum(const std::vector<double>& v) {
  double s = 0;
  for (double x : v) s += x;
  return s;
}

// First crossing by the definition, multiplying step by step in long double.
int64_t slow_horizon(const std::vector<double>& log_abs, size_t start, double threshold) {
  long double product = 0;
  for (size_t t = start; t < log_abs.size(); ++t) {
    product += log_abs[t];
    if (product <= std::log(static_cast<long double>(threshold))) return static_cast<int64_t>(t - start + 1);
  }
  return horizon_censored;
}

}  // namespace

TEST_CASE("statistics: radius bins are half-open and an eigenvalue of modulus one is not decay") {
  const auto x = logs({0, 0.05, 0.1, 0.5, 0.9, 0.95, 1, 9.99, 10, 100, 1e5});
  const auto s = spectrum_statistics({x, {}, 1, 11, 1});
  const std::vector<double> expected{2, 1, 1, 2, 2, 1, 2};
  for (size_t k = 0; k < expected.size(); ++k)
    CHECK(s.radius_percent.mean[k] == doctest::Approx(100 * expected[k] / 11).epsilon(1e-14));
  CHECK(sum(s.radius_percent.mean) == doctest::Approx(100).epsilon(1e-14));
  CHECK(s.unit_share == doctest::Approx(1.0 / 11));
  CHECK(s.expanding_share == doctest::Approx(4.0 / 11));
  CHECK(s.zeros == 1);
  CHECK(s.radius.count == 11);
  CHECK(s.log_radius.count == 10);
  CHECK(s.spectral_radius == doctest::Approx(1e5));
}

TEST_CASE("statistics: phase bins take the magnitude, meet 45, 90 and 180 degrees exactly and sum to 100") {
  const std::vector<double> degrees{0, 0.5, -0.999, 1.001, -44, 45, -45, 89, -90, 135, 180, -180};
  std::vector<double> arg, x(degrees.size(), -0.1);
  for (double d : degrees) {
    const double radians = d * pi / 180;
    arg.push_back(std::abs(d) == 45 || std::abs(d) == 135 || std::abs(d) == 90
                      ? std::atan2(std::round(std::sin(radians) * 1.5), std::round(std::cos(radians) * 1.5))
                      : radians);
  }
  const auto s = spectrum_statistics({x, arg, 1, 1, static_cast<int64_t>(x.size()), false});
  const std::vector<double> expected{3, 1, 1, 3, 4};
  REQUIRE(s.phase_percent.mean.size() == expected.size());
  for (size_t k = 0; k < expected.size(); ++k)
    CHECK(s.phase_percent.mean[k] == doctest::Approx(100 * expected[k] / 12).epsilon(1e-14));
  // Angles on another branch are the same angles.
  for (double& a : arg) a += 4 * pi;
  arg[1] = 2 * pi - 0.5 * pi / 180;
  const auto moved = spectrum_statistics({x, arg, 1, 1, static_cast<int64_t>(x.size()), false});
  CHECK(sum(moved.phase_percent.mean) == doctest::Approx(100));
  CHECK(moved.phase_percent.mean[1] == doctest::Approx(s.phase_percent.mean[1]));
}

TEST_CASE("statistics: the published bins count 1.0 twice and drop negative phases") {
  const auto ones = logs({1, 1, 1, 1});
  const auto s = spectrum_statistics({ones, {}, 1, 4, 1}, Binning::published);
  CHECK(sum(s.radius_percent.mean) == doctest::Approx(200));
  CHECK(s.radius_percent.mean[3] == doctest::Approx(100));
  CHECK(s.radius_percent.mean[4] == doctest::Approx(100));
  const std::vector<double> arg{0.3, -0.3, pi, -pi / 2};
  const auto signed_phases = spectrum_statistics({ones, arg, 1, 4, 1}, Binning::published);
  REQUIRE(signed_phases.phase_percent.mean.size() == 6);
  CHECK(sum(signed_phases.phase_percent.mean) == doctest::Approx(50));
  CHECK(signed_phases.phase_percent.mean[5] == 0);
  const std::vector<double> broken{0.0, not_a_number, inf, std::log(0.2)};
  const auto bad = spectrum_statistics({broken, {}, 1, 4, 1}, Binning::published);
  CHECK(bad.non_finite == 2);
  CHECK(sum(bad.radius_percent.mean) == doctest::Approx(100));  // 1.0 twice, inf and 0.2 once, NaN never
  CHECK(bad.radius_percent.mean[6] == doctest::Approx(25));
}

TEST_CASE("statistics: shares are averaged over sequences with the population deviation") {
  // Sequence 0: one of four below 0.1; sequence 1: three of four.
  const auto x = logs({0.05, 0.95, 0.95, 0.95, 0.05, 0.05, 0.05, 0.95});
  const auto s = spectrum_statistics({x, {}, 2, 4, 1});
  CHECK(s.radius_percent.mean[0] == doctest::Approx(50));
  CHECK(s.radius_percent.std[0] == doctest::Approx(25));
  CHECK(s.phase_percent.mean[0] == doctest::Approx(100));
  CHECK(s.phase_percent.std[0] == 0);
}

TEST_CASE("statistics: non-finite eigenvalues are counted and never binned") {
  const std::vector<double> x{not_a_number, -0.5,         inf,          -0.2,
                              not_a_number, not_a_number, not_a_number, not_a_number};
  const std::vector<double> arg{0, not_a_number, 0, 0, 0, 0, 0, 0};
  const auto s = spectrum_statistics({x, arg, 2, 4, 1});
  CHECK(s.count == 8);
  CHECK(s.non_finite == 7);
  CHECK(s.sequences_binned == 1);
  CHECK(s.radius_percent.mean[2] == doctest::Approx(100));
  CHECK(sum(s.phase_percent.mean) == doctest::Approx(100));
  CHECK(s.log_radius.count == 1);
  const std::vector<double> none{not_a_number, not_a_number};
  const auto empty = spectrum_statistics({none, {}, 1, 2, 1});
  CHECK(std::isnan(empty.radius_percent.mean[0]));
  CHECK(std::isnan(empty.spectral_radius));
  CHECK(empty.half_horizon.undefined == 2);
}

TEST_CASE("statistics: moments and quantiles of a known set") {
  const auto s = summarise({4, 1, 3, 2, 10});
  CHECK(s.mean == doctest::Approx(4));
  CHECK(s.std == doctest::Approx(std::sqrt(10.0)));
  CHECK(s.skewness == doctest::Approx(36.0 / std::pow(10.0, 1.5)));  // Σd³/5 = (−27−8−1+0+216)/5
  CHECK(s.kurtosis == doctest::Approx(278.8 / 100.0 - 3));           // Σd⁴/5 = (81+16+1+0+1296)/5
  CHECK(s.quantiles[3] == 3);
  CHECK(s.quantiles[2] == 2);
  CHECK(s.quantiles[1] == doctest::Approx(1.2));
  const auto huge = summarise({1e300, -1e300, 1e300, -1e300});
  CHECK(huge.std == doctest::Approx(1e300));
  CHECK(huge.kurtosis == doctest::Approx(-2));
  const auto flat = summarise({0.1, 0.1, 0.1});
  CHECK(flat.mean == 0.1);
  CHECK(flat.std == 0);
  CHECK(flat.skewness == 0);
  CHECK(std::isnan(summarise({}).mean));
}

TEST_CASE("statistics: memory horizons equal the definition for products that are not monotone") {
  for (int64_t n : {1, 2, 63, 100, 257}) {
    for (uint64_t seed = 0; seed < 8; ++seed) {
      Rng rng(seed, n);
      std::vector<double> x(n);
      const double drift = -0.3 * rng.uniform();
      for (double& v : x) v = drift + 0.5 * rng.normal();
      for (double threshold : {0.5, std::exp(-1.0), 0.9}) {
        const auto fast = memory_horizons(x, threshold);
        for (int64_t s = 0; s < n; ++s) REQUIRE(fast[s] == slow_horizon(x, s, threshold));
      }
    }
  }
}

TEST_CASE("statistics: horizons of constant decay are exact at every start, ties included") {
  const std::vector<double> halves(100, std::log(0.5)), roots(100, std::log(0.5) / 8);
  const auto one = memory_horizons(halves, 0.5), eight = memory_horizons(roots, 0.5);
  for (int64_t s = 0; s < 100; ++s) {
    CHECK(one[s] == 1);
    CHECK(eight[s] == (s + 8 <= 100 ? 8 : horizon_censored));
  }
}

TEST_CASE("statistics: a zero ends every memory and a NaN ends all knowledge") {
  const std::vector<double> x{0.0, 0.1, -inf, 0.0, -2.0, 0.0, not_a_number, 0.0, 0.0};
  const auto h = memory_horizons(x, 0.5);
  const std::vector<int64_t> expected{
      3, 2, 1, 2, 1, horizon_undefined, horizon_undefined, horizon_censored, horizon_censored};
  CHECK(h == expected);
  const auto s = spectrum_statistics({x, {}, 1, 9, 1});
  CHECK(s.half_horizon.starts == 9);
  CHECK(s.half_horizon.undefined == 2);
  CHECK(s.half_horizon.censored == 2);
  CHECK(s.half_horizon.censored_share == doctest::Approx(2.0 / 7));
  CHECK(s.half_horizon.mean_reached == doctest::Approx(9.0 / 5));
}

TEST_CASE("statistics: Kaplan-Meier quantiles are not biased by sequences that end") {
  // Every memory lasts 8 steps; the last 7 starts of each short sequence cannot show it.
  const std::vector<double> x(20, std::log(0.5) / 8);
  const auto s = spectrum_statistics({x, {}, 1, 20, 1});
  CHECK(s.half_horizon.censored == 7);
  for (double q : s.half_horizon.quantiles) CHECK(q == 8);
  // A worked example: 6 subjects, fell at 1, 2, 4; watched until 2, 3, 5.
  const std::vector<int64_t> fell{1, 2, 4, -1, -1, -1}, watched{9, 9, 9, 2, 3, 5};
  const auto h = horizon_distribution(fell, watched, 0.5);
  // S(1) = 5/6, S(2) = 5/6·4/5 = 2/3, S(4) = 2/3·1/2 = 1/3.
  const std::array<double, 7> expected{1, 1, 2, 4, inf, inf, inf};
  CHECK(h.quantiles == expected);
  CHECK(h.mean_reached == doctest::Approx(7.0 / 3));
}

TEST_CASE("statistics: a time-invariant system has closed-form horizons, time constants and frequencies") {
  const auto x = logs({0.5, 0.9, 1, 2, 0});
  const std::vector<double> arg{pi / 2, -pi / 2, 0, pi, 0};
  const auto s = spectrum_statistics({x, arg, 1, 1, 5, false});
  CHECK(s.half_horizon.starts == 5);
  CHECK(s.half_horizon.censored == 2);
  const std::array<double, 7> expected{1, 1, 1, 7, inf, inf, inf};
  CHECK(s.half_horizon.quantiles == expected);
  CHECK(s.time_constant.count == 2);
  CHECK(s.time_constant.max == doctest::Approx(-1 / std::log(0.9)));
  CHECK(s.frequency.max == doctest::Approx(0.5));
  CHECK(s.frequency.mean == doctest::Approx(0.2));
  const auto constants = time_constants(x);
  CHECK(constants[2] == inf);
  CHECK(constants[3] == doctest::Approx(-1 / std::log(2.0)));
  CHECK(constants[4] == 0);
  CHECK(frequencies(arg)[1] == doctest::Approx(-0.25));
}

TEST_CASE("statistics: a series per state is watched on its own") {
  // State 0 decays at once, state 1 never.
  std::vector<double> x;
  for (int t = 0; t < 7; ++t) x.push_back(std::log(0.25)), x.push_back(0.0);
  const auto s = spectrum_statistics({x, {}, 1, 7, 2});
  CHECK(s.half_horizon.starts == 14);
  CHECK(s.half_horizon.censored == 7);
  CHECK(s.half_horizon.mean_reached == 1);
}

TEST_CASE("statistics: transition products equal the running product") {
  Rng rng(3);
  std::vector<double> x(100), arg(100);
  for (int t = 0; t < 100; ++t) x[t] = rng.normal(), arg[t] = rng.uniform(-10, 10);
  const TransitionProducts phi(x, arg);
  CHECK(phi.steps() == 100);
  CHECK(phi.log_abs(40, 40) == 0);
  for (int64_t s : {0, 1, 50, 99}) {
    double direct = 0, angle = 0;
    for (int64_t t = s + 1; t <= 100; ++t) {
      direct += x[t - 1], angle += arg[t - 1];
      CHECK(phi.log_abs(t, s) == doctest::Approx(direct).epsilon(1e-12));
      CHECK(std::abs(wrap_angle(phi.arg(t, s) - angle)) < 1e-12);
    }
  }
  x[10] = -inf, x[20] = not_a_number;
  const TransitionProducts cut(x, {});
  CHECK(cut.log_abs(11, 10) == -inf);
  CHECK(cut.log_abs(10, 0) == doctest::Approx(phi.log_abs(10, 0)));
  CHECK(std::isnan(cut.log_abs(21, 20)));
  CHECK(cut.log_abs(100, 21) == doctest::Approx(phi.log_abs(100, 21)));
  CHECK_THROWS_AS(cut.log_abs(3, 4), Error);
  CHECK_THROWS_AS(cut.log_abs(101, 4), Error);
}

TEST_CASE("statistics: the memory curve holds the quantiles of every product of its lag") {
  Rng rng(3, 1);
  std::vector<double> x(2 * 20 * 3);
  for (double& v : x) v = rng.uniform(-1, 0.3);
  const auto s = spectrum_statistics({x, {}, 2, 20, 3});
  for (size_t k = 0; k < memory_lags.size(); ++k) {
    const int64_t lag = static_cast<int64_t>(memory_lags[k]);
    std::vector<double> direct;
    for (int64_t b = 0; b < 2; ++b)
      for (int64_t n = 0; n < 3; ++n)
        for (int64_t start = 0; start + lag <= 20; ++start) {
          double sum = 0;
          for (int64_t t = start; t < start + lag; ++t) sum += x[size_t((b * 20 + t) * 3 + n)];
          direct.push_back(sum);
        }
    CAPTURE(lag);
    if (direct.empty()) {
      CHECK(std::isnan(s.memory.median[k]));
      continue;
    }
    const Summary expected = summarise(direct);
    CHECK(s.memory.low[k] == doctest::Approx(expected.quantiles[1]).epsilon(1e-12));
    CHECK(s.memory.median[k] == doctest::Approx(expected.quantiles[3]).epsilon(1e-12));
    CHECK(s.memory.high[k] == doctest::Approx(expected.quantiles[5]).epsilon(1e-12));
  }
  const auto fixed = spectrum_statistics({std::vector<double>{-0.5, -0.1, -inf}, {}, 1, 1, 3, false});
  CHECK(fixed.memory.median[4] == doctest::Approx(-8));
  CHECK(fixed.memory.low[0] == -inf);
}

TEST_CASE("statistics: the field visitor names every number once") {
  const auto x = logs({0.5, 0.9, 1.5});
  for (bool time_varying : {true, false}) {
    const auto s = spectrum_statistics({x, {}, 1, 3, 1, time_varying});
    std::set<std::string> names;
    int64_t fields = 0;
    std::map<std::string, double> scalars;
    struct Visit {
      std::set<std::string>& names;
      int64_t& fields;
      std::map<std::string, double>& scalars;
      void operator()(const std::string& name, double v) { names.insert(name), ++fields, scalars[name] = v; }
      void operator()(const std::string& name, int64_t v) { operator()(name, static_cast<double>(v)); }
      void operator()(const std::string& name, std::span<const double> v) {
        CHECK(!v.empty());
        names.insert(name), ++fields;
      }
    } visit{names, fields, scalars};
    visit_fields(s, visit);
    CHECK(static_cast<int64_t>(names.size()) == fields);
    CHECK(scalars["expanding_share"] == doctest::Approx(1.0 / 3));
    CHECK(names.count("half_horizon.quantiles") == 1);
    CHECK(names.count("time_constant.mean") == (time_varying ? 0 : 1));
  }
}

TEST_CASE("statistics: sizes that do not match are errors") {
  const std::vector<double> x(6, 0.0), arg(5, 0.0);
  CHECK_THROWS_AS(spectrum_statistics({x, {}, 1, 5, 1}), Error);
  CHECK_THROWS_AS(spectrum_statistics({x, arg, 1, 6, 1}), Error);
  CHECK_THROWS_AS(spectrum_statistics({{}, {}, 0, 0, 0}), Error);
  CHECK_THROWS_AS(memory_horizons(x, 1.0), Error);
  CHECK_THROWS_AS(memory_horizons(x, 0.0), Error);
}
