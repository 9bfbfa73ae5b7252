#include "spectral/correlation.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "tensor/error.h"
#include "tensor/rng.h"

namespace eigentrace {
namespace {

constexpr int64_t exact_limit = 8;  // 8! = 40,320 pairings

// 2·rank − (n + 1): centred and integer, so that the correlations of two pairings compare exactly.
std::vector<int64_t> centred_ranks(std::span<const double> values) {
  const std::vector<double> ranks = average_ranks(values);
  std::vector<int64_t> out;
  for (double r : ranks) out.push_back(std::llround(2 * r) - static_cast<int64_t>(values.size()) - 1);
  return out;
}

int64_t inner(const std::vector<int64_t>& a, const std::vector<int64_t>& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), int64_t{0});
}

// Quantile of sorted values, linear between order statistics.
double quantile(const std::vector<double>& sorted, double level) {
  const double position = level * static_cast<double>(sorted.size() - 1);
  const size_t below = static_cast<size_t>(position);
  const double low = sorted[below], high = sorted[std::min(below + 1, sorted.size() - 1)];
  return low + (position - static_cast<double>(below)) * (high - low);
}

}  // namespace

std::vector<double> average_ranks(std::span<const double> values) {
  std::vector<size_t> order(values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  for (size_t k = 0; k < values.size(); ++k)
    if (std::isnan(values[k]))
      fail(fmt::format("average_ranks: values[{}]: expected a number, found NaN; drop the pair", k));
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return values[a] < values[b]; });
  std::vector<double> ranks(values.size());
  for (size_t first = 0; first < order.size();) {
    size_t last = first;
    while (last + 1 < order.size() && values[order[last + 1]] == values[order[first]]) ++last;
    for (size_t k = first; k <= last; ++k) ranks[order[k]] = 1 + 0.5 * static_cast<double>(first + last);
    first = last + 1;
  }
  return ranks;
}

RankCorrelation spearman(std::span<const double> x, std::span<const double> y, uint64_t seed,
                         int64_t permutations) {
  if (x.size() != y.size() || x.size() < 2)
    fail(fmt::format("spearman: x, y: expected at least two pairs of equal number, found {} and {}", x.size(),
                     y.size()));
  if (permutations < 1)
    fail(fmt::format("spearman: permutations: expected at least 1, found {}", permutations));
  const std::vector<int64_t> rx = centred_ranks(x);
  std::vector<int64_t> ry = centred_ranks(y);
  RankCorrelation c;
  c.n = static_cast<int64_t>(x.size());
  c.exact = c.n <= exact_limit;
  const int64_t xx = inner(rx, rx), yy = inner(ry, ry), observed = inner(rx, ry);
  if (xx == 0 || yy == 0) {
    c.rho = c.p_value = std::numeric_limits<double>::quiet_NaN();
    return c;
  }
  c.rho = static_cast<double>(observed) / std::sqrt(static_cast<double>(xx) * static_cast<double>(yy));
  int64_t hits = 0;
  if (c.exact) {
    // Positions are permuted, not values: ties then count with their multiplicity.
    std::vector<size_t> order(ry.size());
    std::iota(order.begin(), order.end(), size_t{0});
    do {
      int64_t s = 0;
      for (size_t k = 0; k < order.size(); ++k) s += rx[k] * ry[order[k]];
      hits += std::abs(s) >= std::abs(observed);
      ++c.permutations;
    } while (std::next_permutation(order.begin(), order.end()));
    c.p_value = static_cast<double>(hits) / static_cast<double>(c.permutations);
    return c;
  }
  Rng rng(seed);
  for (c.permutations = 0; c.permutations < permutations; ++c.permutations) {
    for (size_t k = ry.size() - 1; k > 0; --k) std::swap(ry[k], ry[rng.below(static_cast<uint32_t>(k + 1))]);
    hits += std::abs(inner(rx, ry)) >= std::abs(observed);
  }
  c.p_value = static_cast<double>(1 + hits) / static_cast<double>(1 + permutations);
  return c;
}

namespace {

void check_interval(const char* function, double level, int64_t resamples) {
  if (!(level > 0 && level < 1))
    fail(fmt::format("{}: level: expected a number between 0 and 1, found {}", function, level));
  if (resamples < 1) fail(fmt::format("{}: resamples: expected at least 1, found {}", function, resamples));
}

}  // namespace

RhoInterval bootstrap_spearman(std::span<const double> x, std::span<const double> y, uint64_t seed,
                               double level, int64_t resamples) {
  check_interval("bootstrap_spearman", level, resamples);
  const double undefined = std::numeric_limits<double>::quiet_NaN();
  RhoInterval interval{undefined, undefined, level};
  if (std::isnan(spearman(x, y, seed, 1).rho)) return interval;
  const size_t n = x.size();
  Rng rng(seed);
  std::vector<double> rhos, a(n), b(n);
  for (int64_t k = 0; k < resamples; ++k) {
    for (size_t i = 0; i < n; ++i) {
      const size_t pick = rng.below(static_cast<uint32_t>(n));
      a[i] = x[pick], b[i] = y[pick];
    }
    const std::vector<int64_t> ra = centred_ranks(a), rb = centred_ranks(b);
    const double aa = static_cast<double>(inner(ra, ra)), bb = static_cast<double>(inner(rb, rb));
    if (aa > 0 && bb > 0) rhos.push_back(static_cast<double>(inner(ra, rb)) / std::sqrt(aa * bb));
  }
  if (2 * static_cast<int64_t>(rhos.size()) < resamples) return interval;
  std::sort(rhos.begin(), rhos.end());
  interval.low = quantile(rhos, (1 - level) / 2), interval.high = quantile(rhos, (1 + level) / 2);
  return interval;
}

PairedChange paired_change(std::span<const double> before, std::span<const double> after, uint64_t seed,
                           double level, int64_t resamples, int64_t permutations) {
  if (before.size() != after.size() || before.empty())
    fail(fmt::format("paired_change: expected pairs, found {} values before and {} after", before.size(),
                     after.size()));
  if (permutations < 1)
    fail(fmt::format("paired_change: permutations: expected at least 1, found {}", permutations));
  std::vector<double> d(before.size());
  for (size_t k = 0; k < d.size(); ++k) d[k] = after[k] - before[k];
  PairedChange change;
  change.difference = bootstrap_mean(d, seed, level, resamples);
  const double observed = std::abs(std::accumulate(d.begin(), d.end(), 0.0));
  double size = 0;
  for (const double x : d) size += std::abs(x);
  const double tie =
      8 * std::numeric_limits<double>::epsilon() * size;  // sums that rounding alone tells apart
  int64_t hits = 0;
  change.exact = d.size() <= 12;
  if (change.exact) {
    for (uint32_t signs = 0; signs < uint32_t{1} << d.size(); ++signs, ++change.permutations) {
      double sum = 0;
      for (size_t k = 0; k < d.size(); ++k) sum += (signs >> k & 1) != 0 ? d[k] : -d[k];
      hits += std::abs(sum) >= observed - tie;
    }
    change.p_value = static_cast<double>(hits) / static_cast<double>(change.permutations);
    return change;
  }
  Rng rng(seed, 1);
  for (; change.permutations < permutations; ++change.permutations) {
    double sum = 0;
    for (const double x : d) sum += rng.below(2) != 0 ? x : -x;
    hits += std::abs(sum) >= observed - tie;
  }
  change.p_value = static_cast<double>(1 + hits) / static_cast<double>(1 + permutations);
  return change;
}

std::vector<double> false_discovery_rates(std::span<const double> p_values) {
  std::vector<size_t> order;
  for (size_t k = 0; k < p_values.size(); ++k)
    if (!std::isnan(p_values[k])) order.push_back(k);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return p_values[a] < p_values[b]; });
  std::vector<double> q(p_values.size(), std::numeric_limits<double>::quiet_NaN());
  double least = 1;
  for (size_t k = order.size(); k-- > 0;) {
    least =
        std::min(least, p_values[order[k]] * static_cast<double>(order.size()) / static_cast<double>(k + 1));
    q[order[k]] = least;
  }
  return q;
}

MeanInterval bootstrap_mean(std::span<const double> values, uint64_t seed, double level, int64_t resamples) {
  if (values.empty()) fail("bootstrap_mean: values: expected at least one, found none");
  for (size_t k = 0; k < values.size(); ++k)
    if (!std::isfinite(values[k]))
      fail(
          fmt::format("bootstrap_mean: values[{}]: expected a finite number, found {}; leave failed runs out",
                      k, values[k]));
  if (!(level > 0 && level < 1))
    fail(fmt::format("bootstrap_mean: level: expected a number between 0 and 1, found {}", level));
  if (resamples < 1) fail(fmt::format("bootstrap_mean: resamples: expected at least 1, found {}", resamples));
  MeanInterval m;
  m.n = static_cast<int64_t>(values.size()), m.level = level;
  const double n = static_cast<double>(values.size());
  m.mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  m.low = m.high = std::numeric_limits<double>::quiet_NaN();
  if (values.size() == 1) return m;
  Rng rng(seed);
  std::vector<double> means(resamples);
  for (double& mean : means) {
    double sum = 0;
    for (size_t k = 0; k < values.size(); ++k) sum += values[rng.below(static_cast<uint32_t>(values.size()))];
    mean = sum / n;
  }
  std::sort(means.begin(), means.end());
  m.low = quantile(means, (1 - level) / 2), m.high = quantile(means, (1 + level) / 2);
  return m;
}

}  // namespace eigentrace
