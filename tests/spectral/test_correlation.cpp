#include "spectral/correlation.h"

#include <doctest/doctest.h>

#include <cmath>

#include "tensor/error.h"
#include "tensor/rng.h"

using namespace eigentrace;

TEST_CASE("correlation: equal values share the average of their ranks") {
  const std::vector<double> v{3, 1, 3, 2, 3};
  CHECK(average_ranks(v) == std::vector<double>{4, 1, 4, 2, 4});
  CHECK(average_ranks(std::vector<double>{}).empty());
  CHECK_THROWS_AS(average_ranks(std::vector<double>{1, NAN}), Error);
}

TEST_CASE("correlation: Spearman of small sets is the textbook value with the exact p-value") {
  const std::vector<double> x{1, 2, 3, 4, 5}, up{1, 8, 27, 64, 125}, y{2, 1, 4, 3, 5};
  const auto monotone = spearman(x, up);
  CHECK(monotone.rho == doctest::Approx(1).epsilon(1e-15));
  CHECK(monotone.exact);
  CHECK(monotone.permutations == 120);
  CHECK(monotone.p_value == doctest::Approx(2.0 / 120));  // only x's order and its reverse
  // Σd² = 4: rho = 1 − 6·4/(5·24) = 0.8; tables: two-sided p = 16/120.
  const auto c = spearman(x, y);
  CHECK(c.rho == doctest::Approx(0.8));
  CHECK(c.p_value == doctest::Approx(16.0 / 120));
  // Ties: ranks of x are 1.5, 1.5, 3; of y 1, 2, 3: rho = 1.5/√(1.5·2).
  const auto tied = spearman(std::vector<double>{7, 7, 9}, std::vector<double>{1, 2, 3});
  CHECK(tied.rho == doctest::Approx(1.5 / std::sqrt(3.0)));
  CHECK(tied.p_value == doctest::Approx(4.0 / 6));
}

TEST_CASE("correlation: a constant side has no rank correlation") {
  const auto c = spearman(std::vector<double>{1, 1, 1}, std::vector<double>{1, 2, 3});
  CHECK(std::isnan(c.rho));
  CHECK(std::isnan(c.p_value));
}

TEST_CASE("correlation: the sampled p-value is seeded, never zero, and near the exact one") {
  Rng rng(5);
  std::vector<double> x(40), noise(40), near(40);
  for (int k = 0; k < 40; ++k)
    x[k] = rng.normal(), noise[k] = rng.normal(), near[k] = x[k] + 0.1 * rng.normal();
  const auto strong = spearman(x, near, 1), again = spearman(x, near, 1);
  CHECK(strong.rho > 0.9);
  CHECK(strong.p_value == doctest::Approx(1.0 / 10000));
  CHECK(strong.p_value == again.p_value);
  CHECK_FALSE(strong.exact);
  // Under no relation p is uniform: 200 data sets, share below 0.1 within four deviations.
  int below = 0;
  for (uint64_t s = 0; s < 200; ++s) {
    std::vector<double> a(12), b(12);
    for (int k = 0; k < 12; ++k) a[k] = rng.normal(), b[k] = rng.normal();
    below += spearman(a, b, s, 499).p_value <= 0.1;
  }
  CHECK(std::abs(below - 20) < 4 * std::sqrt(200 * 0.1 * 0.9));
  // t approximation of the p-value for a moderate correlation.
  const auto moderate = spearman(x, noise, 2);
  const double t = moderate.rho * std::sqrt(38 / (1 - moderate.rho * moderate.rho));
  CHECK(std::abs(moderate.p_value - std::erfc(std::abs(t) / std::sqrt(2.0))) < 0.03);
}

TEST_CASE("correlation: bootstrap intervals hold the mean and cover it about as often as they say") {
  const auto one = bootstrap_mean(std::vector<double>{2.5});
  CHECK(one.mean == 2.5);
  CHECK(std::isnan(one.low));
  const auto flat = bootstrap_mean(std::vector<double>{3, 3, 3});
  CHECK(flat.low == 3);
  CHECK(flat.high == 3);
  Rng rng(11);
  int covered = 0;
  for (uint64_t s = 0; s < 200; ++s) {
    std::vector<double> v(30);
    for (double& x : v) x = 1 + 2 * rng.normal();
    const auto m = bootstrap_mean(v, s, 0.9, 500);
    CHECK(m.low <= m.mean);
    CHECK(m.mean <= m.high);
    covered += m.low <= 1 && 1 <= m.high;
  }
  CHECK(covered >= 160);
  CHECK(covered <= 192);
  // The large-sample width is 2·1.645·σ/√n.
  std::vector<double> v(400);
  for (double& x : v) x = rng.normal();
  const auto m = bootstrap_mean(v, 0, 0.9, 4000);
  CHECK(m.high - m.low == doctest::Approx(2 * 1.645 / 20).epsilon(0.1));
  CHECK(bootstrap_mean(v, 1).low == bootstrap_mean(v, 1).low);
}

TEST_CASE("correlation: bad input is an error") {
  const std::vector<double> one{1}, two{1, 2}, three{1, 2, 3};
  CHECK_THROWS_AS(spearman(two, three), Error);
  CHECK_THROWS_AS(spearman(one, one), Error);
  CHECK_THROWS_AS(spearman(two, std::vector<double>{1, NAN}), Error);
  CHECK_THROWS_AS(spearman(two, two, 0, 0), Error);
  CHECK_THROWS_AS(bootstrap_mean({}), Error);
  CHECK_THROWS_AS(bootstrap_mean(two, 0, 1.0), Error);
  CHECK_THROWS_AS(bootstrap_mean(std::vector<double>{1, INFINITY}), Error);
}

TEST_CASE(
    "correlation: the bootstrap interval of rho holds a strong correlation away from 0 and spans it for "
    "none") {
  Rng rng(5, 1);
  std::vector<double> x, near, none;
  for (int k = 0; k < 60; ++k) {
    x.push_back(rng.normal());
    near.push_back(x.back() + 0.3 * rng.normal());
    none.push_back(rng.normal());
  }
  const RhoInterval strong = bootstrap_spearman(x, near, 3), weak = bootstrap_spearman(x, none, 3);
  CHECK(strong.low > 0.7);
  CHECK(strong.high < 1);
  CHECK(strong.low < spearman(x, near).rho);
  CHECK(strong.high > spearman(x, near).rho);
  CHECK(weak.low < 0);
  CHECK(weak.high > 0);
  CHECK(bootstrap_spearman(x, near, 3).low == strong.low);
  CHECK(bootstrap_spearman(x, near, 4).low != strong.low);
  CHECK(std::isnan(bootstrap_spearman(std::vector<double>{1, 1, 1}, std::vector<double>{1, 2, 3}).low));
  CHECK_THROWS_AS(bootstrap_spearman(x, near, 3, 1.5), Error);
}

TEST_CASE("correlation: paired changes are tested by every choice of signs") {
  const std::vector<double> before{1, 2, 3, 4}, after{2, 4, 5, 5};  // differences 1, 2, 2, 1
  const PairedChange change = paired_change(before, after);
  CHECK(change.difference.mean == 1.5);
  CHECK(change.exact);
  CHECK(change.permutations == 16);
  CHECK(change.p_value == doctest::Approx(2.0 / 16));  // all signs alike
  CHECK(paired_change(before, before).p_value == 1);
  std::vector<double> many(20, 0.0), moved(20, 1.0);
  const PairedChange sampled = paired_change(many, moved, 1, 0.95, 100, 999);
  CHECK_FALSE(sampled.exact);
  CHECK(sampled.p_value == doctest::Approx(1.0 / 1000));
  CHECK_THROWS_AS(paired_change(before, many), Error);
}

TEST_CASE("correlation: false discovery rates are Benjamini and Hochberg's") {
  const std::vector<double> p{0.04, 0.01, NAN, 0.03, 0.5};
  const std::vector<double> q = false_discovery_rates(p);
  CHECK(q[1] == doctest::Approx(0.04));
  CHECK(q[3] == doctest::Approx(0.04 * 4 / 3));  // 0.03 · 4/2 = 0.06, but 0.04 · 4/3 is smaller
  CHECK(q[0] == doctest::Approx(0.04 * 4 / 3));
  CHECK(q[4] == doctest::Approx(0.5));
  CHECK(std::isnan(q[2]));
}
