#include "tensor/math.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "tensor/normal.h"
#include "tensor/worse.h"

using namespace eigentrace;

namespace {

/// |y − exact| in units of the last place of a float near `exact` (denormals: of the smallest one).
double ulps(float y, double exact) {
  const int exponent = std::max(exact == 0 ? -149 : std::ilogb(exact) - 23, -149);
  return std::abs(static_cast<double>(y) - exact) / std::ldexp(1.0, exponent);
}

/// The worst error of f against `exact` over every 1009th float in [low, high].
template <class F, class G>
double worst_ulps(float low, float high, F&& f, G&& exact) {
  double worst = 0;
  for (uint32_t bits = 0; bits < 0x7F800000u; bits += 1009)
    for (float x : {std::bit_cast<float>(bits), -std::bit_cast<float>(bits)})
      if (x >= low && x <= high) worst = worse(worst, ulps(f(x), exact(x)));
  return worst;
}

}  // namespace

TEST_CASE("math: of two errors NaN is the worse, on either side") {
  CHECK(worse(1, 2) == 2);
  CHECK(worse(2, 1) == 2);
  CHECK(std::isnan(worse(NAN, 1)));
  CHECK(std::isnan(worse(1, NAN)));
  CHECK(std::isnan(worse(worse(1, NAN), HUGE_VAL)));
}

TEST_CASE("math: fast_exp is within 2.7 ulp of exp from −87 to 88.7, within 1.3 of the last denormal below") {
  const auto f = [](float x) { return fast_exp(x); };
  const auto exact = [](float x) { return std::exp(static_cast<double>(x)); };
  const double normal_range = worst_ulps(-87.0f, 88.7f, f, exact),
               denormals = worst_ulps(-103.9f, -87.0f, f, exact);
  CHECK(normal_range < 2.7);
  CHECK(denormals < 1.3);
}

TEST_CASE("math: fast_exp reaches 0 and infinity, and NaN stays NaN") {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  CHECK(fast_exp(infinity) == infinity);
  CHECK(fast_exp(89.0f) == infinity);
  CHECK(fast_exp(-infinity) == 0);
  CHECK(fast_exp(-105.0f) == 0);
  CHECK(fast_exp(0.0f) == 1);
  CHECK(fast_exp(-0.0f) == 1);
  CHECK(std::isnan(fast_exp(std::numeric_limits<float>::quiet_NaN())));
}

TEST_CASE("math: the float normal distribution keeps its digits, far into the lower tail") {
  const auto cdf = [](float x) { return normal(x).cdf; };
  const auto exact_cdf = [](float x) { return 0.5 * std::erfc(-static_cast<double>(x) / std::sqrt(2.0)); };
  const double upper = worst_ulps(0, 1e30f, cdf, exact_cdf), middle = worst_ulps(-5, 0, cdf, exact_cdf);
  const double tail = worst_ulps(-13, -5, cdf, exact_cdf);
  CHECK(upper < 4);
  CHECK(middle < 7);
  CHECK(tail < 7);
  const auto density = [](float x) { return normal(x).density; };
  CHECK(worst_ulps(-13, 13, density, [](float x) { return normal(static_cast<double>(x)).density; }) < 6);
  CHECK(std::isnan(normal(std::numeric_limits<float>::quiet_NaN()).cdf));
  CHECK(normal(-1e30f).cdf == 0);
  CHECK(normal(1e30f).cdf == 1);
}

TEST_CASE("math: log1p_unit is within 2.7 ulp, softplus within 3.6") {
  const double unit = worst_ulps(
      0, 1, [](float u) { return log1p_unit(u); },
      [](float u) { return std::log1p(static_cast<double>(u)); });
  const double whole = worst_ulps(
      -87, 1e30f, [](float x) { return softplus(x); },
      [](float x) { return x > 50 ? static_cast<double>(x) : std::log1p(std::exp(static_cast<double>(x))); });
  CAPTURE(unit);
  CAPTURE(whole);
  CHECK(unit < 2.7);
  CHECK(whole < 3.6);
}

TEST_CASE("math: sigmoid and softplus neither overflow nor lose the tail") {
  for (float x : {-100.0f, -90.0f, -20.0f, -1.0f, 0.0f, 3.0f, 50.0f, 100.0f}) {
    const double exact = 1 / (1 + std::exp(-static_cast<double>(x)));
    CHECK(sigmoid(x) == doctest::Approx(exact).epsilon(1e-6));
    CHECK(softplus(x) == doctest::Approx(std::log1p(std::exp(static_cast<double>(x)))).epsilon(1e-6));
  }
}
