#include "spectral/statistics.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "tensor/error.h"

namespace eigentrace {
namespace {

constexpr double inf = std::numeric_limits<double>::infinity();
constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();
constexpr double pi = std::numbers::pi;

// Bins are found in log|λ|, where every edge is the logarithm of a decimal number and |λ| = 1 is exactly 0.
std::vector<double> log_radius_edges() {
  std::vector<double> edges;
  for (double edge : radius_edges) edges.push_back(std::log(edge));
  return edges;
}

// Degrees in radians, written so that atan2's 45°, 90° and 180° are met exactly.
std::vector<double> phase_edges() {
  std::vector<double> edges;
  for (double degrees : phase_edges_degrees) edges.push_back(degrees == 0 ? 0 : pi / (180 / degrees));
  return edges;
}

// Adds one to the bins that hold x: [a, b) with the last one closed, or [a, b] each when both ends count.
void count_into(std::vector<double>& bins, const std::vector<double>& edges, double x, bool closed) {
  for (size_t k = 0; k + 1 < edges.size(); ++k) {
    const bool last = k + 2 == edges.size();
    if (x >= edges[k] && (x < edges[k + 1] || ((closed || last) && x == edges[k + 1]))) bins[k] += 1;
  }
}

// Mean and population standard deviation per bin of rows [sequences][bins].
Shares shares_of(const std::vector<std::vector<double>>& rows, size_t bins) {
  Shares shares{std::vector<double>(bins, rows.empty() ? not_a_number : 0),
                std::vector<double>(bins, rows.empty() ? not_a_number : 0)};
  const double n = static_cast<double>(rows.size());
  for (size_t k = 0; k < bins && !rows.empty(); ++k) {
    for (const auto& row : rows) shares.mean[k] += row[k] / n;
    for (const auto& row : rows) {
      const double d = row[k] - shares.mean[k];
      shares.std[k] += d * d / n;
    }
    shares.std[k] = std::sqrt(shares.std[k]);
  }
  return shares;
}

// log|λ| = −inf is λ = 0, a number; NaN and +inf are not.
bool usable(double log_abs, double arg) { return log_abs < inf && std::isfinite(arg); }

// Steps after which |λ|^k ≤ threshold, for one fixed λ.
int64_t fixed_horizon(double log_abs, double log_threshold) {
  if (!(log_abs < inf)) return horizon_undefined;
  if (log_abs >= 0) return horizon_censored;
  const double k = std::ceil(log_threshold / log_abs * (1 - 4 * std::numeric_limits<double>::epsilon()));
  return k < 1 ? 1 : k < 9e18 ? static_cast<int64_t>(k) : int64_t{9'000'000'000'000'000'000};
}

// Horizons of one run of finite values log_abs[0..n): first crossing by a stack of the records (values below
// all earlier ones) of the prefix sums to the right of the start. Uncrossed starts are left at
// horizon_censored.
void run_horizons(std::span<const double> log_abs, double log_threshold, std::span<int64_t> horizons) {
  const int64_t n = static_cast<int64_t>(log_abs.size());
  std::vector<double> sums(n + 1, 0.0);
  long double sum = 0;
  double largest = 0;
  for (int64_t t = 0; t < n; ++t) {
    sum += log_abs[t];
    sums[t + 1] = static_cast<double>(sum);
    largest = std::max(largest, std::abs(sums[t + 1]));
  }
  const double tie = 4 * std::numeric_limits<double>::epsilon() * largest;
  std::vector<int64_t>
      records;  // positions, sums increasing towards the end: the nearest record is at the back
  for (int64_t s = n - 1; s >= 0; --s) {
    while (!records.empty() && sums[records.back()] >= sums[s + 1]) records.pop_back();
    records.push_back(s + 1);
    const double target = sums[s] + log_threshold + tie;
    const auto beyond =
        std::partition_point(records.begin(), records.end(), [&](int64_t t) { return sums[t] <= target; });
    if (beyond != records.begin()) horizons[s] = *(beyond - 1) - s;
  }
}

// Quantiles 5, 50 and 95 % of log|Φ(s+k, s)| at every lag, over the series of [sequences, steps, states].
MemoryCurve memory_curve(const EigenvalueView& view) {
  constexpr int64_t most = int64_t{1} << 16;
  const int64_t series = view.sequences * view.states;
  std::vector<TransitionProducts> products;
  if (view.time_varying) {
    std::vector<double> one(static_cast<size_t>(view.steps));
    for (int64_t b = 0; b < view.sequences; ++b)
      for (int64_t n = 0; n < view.states; ++n) {
        for (int64_t t = 0; t < view.steps; ++t)
          one[size_t(t)] = view.log_abs[size_t((b * view.steps + t) * view.states + n)];
        products.emplace_back(one, std::span<const double>());
      }
  }
  MemoryCurve curve;
  for (size_t k = 0; k < memory_lags.size(); ++k) {
    const int64_t lag = static_cast<int64_t>(memory_lags[k]);
    const int64_t starts = view.time_varying ? view.steps + 1 - lag : view.steps;
    std::vector<double> values;
    const int64_t total = starts > 0 ? starts * series : 0, kept = std::min(total, most);
    for (int64_t i = 0; i < kept; ++i) {
      const int64_t at = i * total / kept, s = at % starts;
      const double x = view.time_varying ? products[size_t(at / starts)].log_abs(s + lag, s)
                                         : memory_lags[k] * view.log_abs[size_t(at)];
      if (x < inf) values.push_back(x);
    }
    std::sort(values.begin(), values.end());
    const auto quantile = [&](double level) {
      if (values.empty()) return not_a_number;
      const double position = level * static_cast<double>(values.size() - 1);
      const size_t below = static_cast<size_t>(position);
      const double low = values[below], high = values[std::min(below + 1, values.size() - 1)];
      const double weight = position - static_cast<double>(below);
      return weight == 0 || low == high || low == -inf ? low : low + weight * (high - low);
    };
    curve.low[k] = quantile(0.05), curve.median[k] = quantile(0.5), curve.high[k] = quantile(0.95);
  }
  return curve;
}

void check_threshold(const char* function, double threshold) {
  if (!(threshold > 0 && threshold < 1))
    fail(fmt::format("{}: threshold: expected a number between 0 and 1, found {}; 0.5 gives the half-life",
                     function, threshold));
}

}  // namespace

double wrap_angle(double radians) {
  if (radians > -pi && radians <= pi) return radians;
  const double wrapped = std::remainder(radians, 2 * pi);
  return wrapped <= -pi ? pi : wrapped;
}

Summary summarise(std::vector<double> values) {
  Summary s;
  s.count = static_cast<int64_t>(values.size());
  if (values.empty()) {
    s.mean = s.std = s.skewness = s.kurtosis = s.min = s.max = not_a_number;
    s.quantiles.fill(not_a_number);
    return s;
  }
  std::sort(values.begin(), values.end());
  s.min = values.front(), s.max = values.back();
  for (size_t k = 0; k < quantile_levels.size(); ++k) {
    const double position = quantile_levels[k] * static_cast<double>(values.size() - 1);
    const size_t below = static_cast<size_t>(position);
    const double weight = position - static_cast<double>(below);
    const double low = values[below], high = values[std::min(below + 1, values.size() - 1)];
    s.quantiles[k] = weight == 0 || low == high ? low : low + weight * (high - low);
  }
  // Scaled by the largest magnitude, so that fourth powers neither overflow nor vanish.
  const double scale = std::max(std::abs(s.min), std::abs(s.max));
  if (scale == 0) return s;
  if (!std::isfinite(scale)) {
    s.mean = s.min == -inf && s.max == inf ? not_a_number : s.max == inf ? inf : -inf;
    s.std = s.skewness = s.kurtosis = not_a_number;
    return s;
  }
  const double n = static_cast<double>(values.size());
  double mean = 0, second = 0, third = 0, fourth = 0;
  for (double v : values) mean += v / scale / n;
  mean = std::clamp(mean, s.min / scale, s.max / scale);  // rounding must not move it outside the data
  for (double v : values) {
    const double d = v / scale - mean, d2 = d * d;
    second += d2 / n, third += d2 * d / n, fourth += d2 * d2 / n;
  }
  s.mean = mean * scale;
  if (s.min == s.max) return s.mean = s.min, s;
  s.std = std::sqrt(second) * scale;
  s.skewness = third / (second * std::sqrt(second));
  s.kurtosis = fourth / (second * second) - 3;
  return s;
}

std::vector<double> time_constants(std::span<const double> log_abs) {
  std::vector<double> out;
  out.reserve(log_abs.size());
  for (double x : log_abs) out.push_back(x == 0 ? inf : x == -inf ? 0.0 : -1 / x);
  return out;
}

std::vector<double> frequencies(std::span<const double> arg) {
  std::vector<double> out;
  out.reserve(arg.size());
  for (double x : arg) out.push_back(wrap_angle(x) / (2 * pi));
  return out;
}

TransitionProducts::TransitionProducts(std::span<const double> log_abs, std::span<const double> arg) {
  if (!arg.empty() && arg.size() != log_abs.size())
    fail(fmt::format("TransitionProducts: arg: expected {} values like log_abs or none, found {}",
                     log_abs.size(), arg.size()));
  sums_.resize(log_abs.size() + 1);
  long double sum = 0, angle = 0;
  for (size_t t = 0; t < log_abs.size(); ++t) {
    const double x = log_abs[t], a = arg.empty() ? 0 : arg[t];
    Sum& next = sums_[t + 1] = sums_[t];
    if (!usable(x, a)) {
      ++next.non_finite;
    } else if (x == -inf) {
      ++next.zeros;
    } else {
      sum += x, angle += wrap_angle(a);
      next.log_abs = static_cast<double>(sum), next.arg = static_cast<double>(angle);
    }
  }
}

void TransitionProducts::check(int64_t t, int64_t s) const {
  if (s < 0 || t < s || t > steps())
    fail(fmt::format("TransitionProducts: (t, s): expected 0 ≤ s ≤ t ≤ {}, found t = {}, s = {}", steps(), t,
                     s));
}

double TransitionProducts::log_abs(int64_t t, int64_t s) const {
  check(t, s);
  if (sums_[t].non_finite != sums_[s].non_finite) return not_a_number;
  return sums_[t].zeros != sums_[s].zeros ? -inf : sums_[t].log_abs - sums_[s].log_abs;
}

double TransitionProducts::arg(int64_t t, int64_t s) const {
  check(t, s);
  if (sums_[t].non_finite != sums_[s].non_finite) return not_a_number;
  return sums_[t].zeros != sums_[s].zeros ? 0 : wrap_angle(sums_[t].arg - sums_[s].arg);
}

std::vector<int64_t> memory_horizons(std::span<const double> log_abs, double threshold) {
  check_threshold("memory_horizons", threshold);
  const int64_t n = static_cast<int64_t>(log_abs.size());
  std::vector<int64_t> horizons(n, horizon_censored);
  // Zeros and non-finite values cut the series into runs: the first ends every memory, the second every
  // knowledge.
  for (int64_t begin = 0; begin < n;) {
    int64_t end = begin;
    while (end < n && std::isfinite(log_abs[end])) ++end;
    run_horizons(log_abs.subspan(begin, end - begin), std::log(threshold),
                 std::span(horizons).subspan(begin, end - begin));
    for (int64_t s = begin; s <= end && end < n; ++s)
      if (horizons[s] == horizon_censored)
        horizons[s] = log_abs[end] == -inf ? end - s + 1 : horizon_undefined;
    begin = end + 1;
  }
  return horizons;
}

Horizon horizon_distribution(std::span<const int64_t> horizons, std::span<const int64_t> follow_up,
                             double threshold) {
  check_threshold("horizon_distribution", threshold);
  if (follow_up.size() != horizons.size())
    fail(fmt::format("horizon_distribution: follow_up: expected {} values like horizons, found {}",
                     horizons.size(), follow_up.size()));
  Horizon h;
  h.threshold = threshold;
  h.starts = static_cast<int64_t>(horizons.size());
  h.quantiles.fill(not_a_number), h.mean_reached = not_a_number, h.censored_share = not_a_number;
  struct Event {
    int64_t step;
    bool censored;
  };
  std::vector<Event> events;
  double reached_sum = 0;
  for (size_t k = 0; k < horizons.size(); ++k) {
    if (horizons[k] == horizon_undefined) {
      ++h.undefined;
    } else if (horizons[k] == horizon_censored) {
      ++h.censored, events.push_back({follow_up[k], true});
    } else {
      reached_sum += static_cast<double>(horizons[k]), events.push_back({horizons[k], false});
    }
  }
  if (events.empty()) return h;
  const int64_t reached = static_cast<int64_t>(events.size()) - h.censored;
  h.censored_share = static_cast<double>(h.censored) / static_cast<double>(events.size());
  if (reached > 0) h.mean_reached = reached_sum / static_cast<double>(reached);
  std::sort(events.begin(), events.end(), [](const Event& a, const Event& b) { return a.step < b.step; });
  h.quantiles.fill(inf);
  double survival = 1;
  size_t level = 0;
  for (size_t k = 0; k < events.size() && level < quantile_levels.size();) {
    // All starts of one step share one risk set: those that fell there, and those whose sequence ended there.
    size_t next = k, fell = 0;
    while (next < events.size() && events[next].step == events[k].step) fell += !events[next++].censored;
    survival *= 1 - static_cast<double>(fell) / static_cast<double>(events.size() - k);
    while (level < quantile_levels.size() && 1 - survival >= quantile_levels[level] - 1e-12)
      h.quantiles[level++] = static_cast<double>(events[k].step);
    k = next;
  }
  return h;
}

SpectrumStatistics spectrum_statistics(const EigenvalueView& view, Binning binning) {
  const int64_t total = view.sequences * view.steps * view.states;
  if (view.sequences < 1 || view.steps < 1 || view.states < 1 ||
      static_cast<int64_t>(view.log_abs.size()) != total)
    fail(fmt::format("spectrum_statistics: log_abs: expected [{}, {}, {}] values, at least one, found {}",
                     view.sequences, view.steps, view.states, view.log_abs.size()));
  if (!view.arg.empty() && view.arg.size() != view.log_abs.size())
    fail(fmt::format("spectrum_statistics: arg: expected {} values like log_abs or none, found {}",
                     view.log_abs.size(), view.arg.size()));
  const bool published = binning == Binning::published;
  SpectrumStatistics s;
  s.binning = binning, s.time_varying = view.time_varying;
  s.sequences = view.sequences, s.steps = view.steps, s.states = view.states, s.count = total;

  const std::vector<double> radius_bins = log_radius_edges(), phase_bins = phase_edges();
  // The published bin above 180° exists, and no angle in (−π, π] is in it.
  const size_t phase_bin_count = phase_bins.size() - 1 + published;
  std::vector<std::vector<double>> radius_rows, phase_rows;
  std::vector<double> radius, log_radius, constants, cycles;
  radius.reserve(total), log_radius.reserve(total);
  int64_t expanding = 0, units = 0;
  s.log_spectral_radius = -inf;
  const int64_t per_sequence = view.steps * view.states;
  for (int64_t b = 0; b < view.sequences; ++b) {
    std::vector<double> radius_row(radius_bins.size() - 1, 0), phase_row(phase_bin_count, 0);
    int64_t binned = 0;
    for (int64_t k = b * per_sequence; k < (b + 1) * per_sequence; ++k) {
      const double x = view.log_abs[k], angle = view.arg.empty() ? 0 : wrap_angle(view.arg[k]);
      // The published bins take whatever compares as inside: +inf is in [100, inf], NaN in none.
      const bool known = usable(x, angle);
      if (known || published) {
        ++binned;
        count_into(radius_row, radius_bins, x, published);
        count_into(phase_row, phase_bins, published ? angle : std::abs(angle), published);
      }
      if (!known) {
        ++s.non_finite;
        continue;
      }
      radius.push_back(std::exp(x));
      if (x == -inf)
        ++s.zeros;
      else
        log_radius.push_back(x);
      expanding += x > 0, units += x == 0;
      s.log_spectral_radius = std::max(s.log_spectral_radius, x);
      if (!view.time_varying) {
        cycles.push_back(std::abs(angle) / (2 * pi));
        if (x < 0 && x > -inf) constants.push_back(-1 / x);
      }
    }
    if (binned == 0) continue;
    for (double& share : radius_row) share *= 100.0 / static_cast<double>(binned);
    for (double& share : phase_row) share *= 100.0 / static_cast<double>(binned);
    radius_rows.push_back(std::move(radius_row)), phase_rows.push_back(std::move(phase_row));
  }
  const double used = static_cast<double>(total - s.non_finite);
  s.sequences_binned = static_cast<int64_t>(radius_rows.size());
  s.radius_percent = shares_of(radius_rows, radius_bins.size() - 1);
  s.phase_percent = shares_of(phase_rows, phase_bin_count);
  s.expanding_share = used > 0 ? static_cast<double>(expanding) / used : not_a_number;
  s.unit_share = used > 0 ? static_cast<double>(units) / used : not_a_number;
  if (used == 0) s.log_spectral_radius = not_a_number;
  s.spectral_radius = std::exp(s.log_spectral_radius);
  s.radius = summarise(std::move(radius));
  s.log_radius = summarise(std::move(log_radius));
  s.time_constant = summarise(std::move(constants));
  s.frequency = summarise(std::move(cycles));

  s.memory = memory_curve(view);
  for (auto [horizon, threshold] :
       {std::pair{&s.half_horizon, 0.5}, std::pair{&s.e_horizon, std::exp(-1.0)}}) {
    std::vector<int64_t> steps, follow_up;
    steps.reserve(total), follow_up.reserve(total);
    if (!view.time_varying) {
      for (double x : view.log_abs) steps.push_back(fixed_horizon(x, std::log(threshold)));
      follow_up.assign(steps.size(), std::numeric_limits<int64_t>::max());
    } else {
      std::vector<double> series(view.steps);
      for (int64_t b = 0; b < view.sequences; ++b)
        for (int64_t n = 0; n < view.states; ++n) {
          for (int64_t t = 0; t < view.steps; ++t)
            series[t] = view.log_abs[(b * view.steps + t) * view.states + n];
          for (int64_t k : memory_horizons(series, threshold)) steps.push_back(k);
          for (int64_t t = 0; t < view.steps; ++t) follow_up.push_back(view.steps - t);
        }
    }
    *horizon = horizon_distribution(steps, follow_up, threshold);
  }
  return s;
}

}  // namespace eigentrace
