#include "spectral/reading.h"

#include <algorithm>
#include <cmath>
#include <complex>
#include <limits>
#include <unordered_set>

#include "spectral/dplr.h"
#include "tensor/error.h"
#include "tensor/rng.h"

namespace eigentrace {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double unknown = std::numeric_limits<double>::quiet_NaN();

int64_t product(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

void read(const NormaliserRatio& ratio, LayerSpectrum& out) {
  const int64_t batch = ratio.log_eta.dim(0), steps = ratio.log_eta.dim(1), heads = ratio.log_eta.dim(2);
  out.kind = SpectrumKind::time_varying, out.gauge = ratio.gauge, out.has_gauge = true;
  out.first_step = 1;
  out.shape = {batch, steps - 1, heads};
  out.log_abs.assign(size_t(product(out.shape)), 0.0);
  if (ratio.gauge == Gauge::readout_normalised || steps < 2) return;
  for (int64_t b = 0; b < batch; ++b) {
    const auto log_eta = ratio.log_eta.slice(0, b, 1).to_vector<double>();
    for (int64_t h = 0; h < heads; ++h) {
      const auto ratios = log_ratios(&log_eta[size_t(h)], steps, heads);
      for (int64_t i = 0; i + 1 < steps; ++i)
        out.log_abs[size_t((b * (steps - 1) + i) * heads + h)] = ratios[size_t(i)];
    }
  }
}

void read(const ScalarDecay& decay, LayerSpectrum& out) {
  const bool lti = decay.log_lambda.rank() == 1;
  out.kind = lti ? SpectrumKind::fixed_per_head : SpectrumKind::time_varying;
  out.shape = decay.log_lambda.shape().to_vector();
  out.log_abs = decay.log_lambda.to_vector<double>();
}

void read(const Diagonal& diagonal, LayerSpectrum& out) {
  out.kind = SpectrumKind::fixed;
  out.shape = diagonal.log_abs.shape().to_vector();
  out.log_abs = diagonal.log_abs.to_vector<double>();
  out.arg = diagonal.arg.to_vector<double>();
  for (double& angle : out.arg) angle = wrap_angle(angle);
}

/// Adds the eigenvalues exp(delta·a) of one step and channel, a ascending; at_least[k]: how many log|λ| reach
/// edge k. The rounded product is monotone in a, so that each edge is a binary search.
void count_step(double delta, std::span<const double> a, const std::vector<double>& edges,
                std::vector<int64_t>& at_least, StreamedCounts& counts) {
  const auto from = [&](const auto& reached) {
    return a.end() - std::partition_point(a.begin(), a.end(), [&](double x) { return !reached(delta * x); });
  };
  const double low = delta * a.front(), high = delta * a.back();
  if (delta >= 0 && std::isfinite(low) && std::isfinite(high)) {
    for (size_t k = 0; k < edges.size(); ++k)
      at_least[k] += from([&](double log_abs) { return log_abs >= edges[k]; });
    const int64_t expanding = from([](double log_abs) { return log_abs > 0; });
    counts.unit += from([](double log_abs) { return log_abs >= 0; }) - expanding;
    counts.expanding += expanding;
    counts.log_spectral_radius = std::max(counts.log_spectral_radius, high);
    return;
  }
  for (const double x : a) {
    const double log_abs = delta * x;
    if (!(log_abs < infinity)) {
      ++counts.non_finite;
      continue;
    }
    for (size_t k = 0; k < edges.size(); ++k) at_least[k] += log_abs >= edges[k];
    counts.zeros += log_abs == -infinity;
    counts.unit += log_abs == 0;
    counts.expanding += log_abs > 0;
    counts.log_spectral_radius = std::max(counts.log_spectral_radius, log_abs);
  }
}

void read(const Outer& outer, const ReadingOptions& options, LayerSpectrum& out) {
  const int64_t batch = outer.delta.dim(0), steps = outer.delta.dim(1), width = outer.a.dim(0),
                n = outer.a.dim(1);
  const int64_t kept =
      std::clamp<int64_t>(options.max_values / std::max<int64_t>(1, batch * steps), 1, width * n);
  out.kind = SpectrumKind::selective;
  out.full_count = batch * steps * width * n;
  out.series = choose(width * n, kept, options.seed);
  out.shape = {batch, steps, kept};
  out.log_abs.resize(size_t(product(out.shape)));
  const bool all = kept == width * n;
  const auto a = outer.a.to_vector<double>();
  auto sorted = a;  // within each channel
  const auto nan_last = [](double x, double y) { return x < y || (std::isnan(y) && !std::isnan(x)); };
  for (int64_t e = 0; e < width; ++e)
    std::sort(sorted.begin() + e * n, sorted.begin() + (e + 1) * n, nan_last);
  std::vector<double> edges;  // [e_k, e_{k+1}) holds at_least[k] − at_least[k+1]; the lowest edge is −∞
  for (const double edge : radius_edges) edges.push_back(std::log(edge));
  std::vector<StreamedCounts> found(static_cast<size_t>(batch));
#pragma omp parallel for schedule(static)
  for (int64_t b = 0; b < batch; ++b) {
    const auto delta = outer.delta.slice(0, b, 1).to_vector<double>();
    for (int64_t i = 0; i < steps; ++i)
      for (int64_t m = 0; m < kept; ++m) {
        const int64_t at = out.series[size_t(m)];
        out.log_abs[size_t((b * steps + i) * kept + m)] = delta[size_t(i * width + at / n)] * a[size_t(at)];
      }
    if (all) continue;
    StreamedCounts& counts = found[size_t(b)];
    counts.log_spectral_radius = -infinity;
    std::vector<int64_t> at_least(edges.size(), 0);
    for (int64_t i = 0; i < steps; ++i)
      for (int64_t e = 0; e < width; ++e)
        count_step(delta[size_t(i * width + e)], std::span(sorted).subspan(size_t(e * n), size_t(n)), edges,
                   at_least, counts);
    counts.count = steps * width * n;
    const double usable = double(counts.count - counts.non_finite);
    counts.radius_percent.resize(1);
    for (size_t k = 0; k + 1 < edges.size(); ++k)
      counts.radius_percent[0].push_back(100 * double(at_least[k] - at_least[k + 1]) / usable);
  }
  if (all) return;
  out.streamed.log_spectral_radius = -infinity;
  for (const StreamedCounts& one : found) {
    out.streamed.count += one.count, out.streamed.non_finite += one.non_finite;
    out.streamed.zeros += one.zeros, out.streamed.unit += one.unit, out.streamed.expanding += one.expanding;
    out.streamed.log_spectral_radius = std::max(out.streamed.log_spectral_radius, one.log_spectral_radius);
    if (one.non_finite < one.count) out.streamed.radius_percent.push_back(one.radius_percent[0]);
  }
}

std::vector<std::complex<double>> host_of(const ComplexTensor& tensor) {
  const auto re = tensor.re.to_vector<double>(), im = tensor.im.to_vector<double>();
  std::vector<std::complex<double>> values(re.size());
  for (size_t i = 0; i < re.size(); ++i) values[i] = {re[i], im[i]};
  return values;
}

void read(const Dplr& dplr, const ReadingOptions& options, LayerSpectrum& out) {
  const int64_t states = dplr.lambda.re.dim(0);
  DplrOptions solver;
  solver.channels = options.channels, solver.progress = options.progress;
  const DplrSpectrum found =
      dplr_spectrum(states, host_of(dplr.lambda), host_of(dplr.p), dplr.log_step.to_vector<double>(), solver);
  out.kind = SpectrumKind::fixed_per_channel;
  out.channels = found.channels;
  out.shape = {int64_t(found.channels.size()), states};
  out.log_abs = found.log_abs(), out.arg = found.arg();
  out.max_residual = found.max_residual, out.max_condition = found.max_condition;
  out.max_error_bound = found.max_error_bound;
  out.certified = found.certified == int64_t(found.channels.size());
}

/// The eigenvalues of one head, or of all (head < 0), as statistics read them: [sequences, steps, states].
SpectrumStatistics statistics_of(const LayerSpectrum& spectrum, int64_t head, Binning binning) {
  EigenvalueView view;
  std::vector<double> log_abs, arg;
  view.log_abs = spectrum.log_abs, view.arg = spectrum.arg;
  view.time_varying = spectrum.time_dependent();
  if (view.time_varying)
    view.sequences = spectrum.shape[0], view.steps = spectrum.shape[1], view.states = spectrum.shape[2];
  else
    view.states = int64_t(spectrum.log_abs.size());
  if (head >= 0) {
    const size_t heads = size_t(spectrum.heads());
    for (size_t at = size_t(head); at < spectrum.log_abs.size(); at += heads) {
      log_abs.push_back(spectrum.log_abs[at]);
      if (!spectrum.arg.empty()) arg.push_back(spectrum.arg[at]);
    }
    view.log_abs = log_abs, view.arg = arg, view.states = 1;
  }
  return spectrum_statistics(view, binning);
}

}  // namespace

const char* name_of(SpectrumKind kind) {
  switch (kind) {
    case SpectrumKind::time_varying:
      return "time_varying";
    case SpectrumKind::fixed:
      return "fixed";
    case SpectrumKind::fixed_per_head:
      return "fixed_per_head";
    case SpectrumKind::fixed_per_channel:
      return "fixed_per_channel";
    case SpectrumKind::selective:
      return "selective";
  }
  return "?";
}

LayerSpectrum::LayerSpectrum() : max_residual(unknown), max_condition(unknown), max_error_bound(unknown) {}

LayerSpectrum read_spectrum(const Realisation& system, int64_t layer, const ReadingOptions& options) {
  check(system);
  return read_spectrum(Lambda{system.family, system.lambda}, layer, options);
}

LayerSpectrum read_spectrum(const Lambda& lambda, int64_t layer, const ReadingOptions& options) {
  LayerSpectrum spectrum;
  spectrum.layer = layer, spectrum.family = lambda.family;
  std::visit(
      [&](const auto& map) {
        using T = std::decay_t<decltype(map)>;
        if constexpr (std::is_same_v<T, Outer> || std::is_same_v<T, Dplr>)
          read(map, options, spectrum);
        else
          read(map, spectrum);
      },
      lambda.map);
  if (spectrum.full_count == 0) spectrum.full_count = int64_t(spectrum.log_abs.size());
  return spectrum;
}

LayerStatistics layer_statistics(const LayerSpectrum& spectrum, Binning binning) {
  LayerStatistics statistics;
  statistics.all = statistics_of(spectrum, -1, binning);
  for (int64_t head = 0; head < spectrum.heads(); ++head)
    statistics.heads.push_back(statistics_of(spectrum, head, binning));
  const StreamedCounts& counts = spectrum.streamed;
  if (!spectrum.sampled() || counts.count == 0) return statistics;
  if (binning == Binning::published)
    fail("layer_statistics: binning: a sampled spectrum is counted in exact bins only, found published");
  statistics.sampled = true;
  SpectrumStatistics& all = statistics.all;
  const double usable = double(counts.count - counts.non_finite);
  all.count = counts.count, all.non_finite = counts.non_finite, all.zeros = counts.zeros;
  all.expanding_share = double(counts.expanding) / usable, all.unit_share = double(counts.unit) / usable;
  all.log_spectral_radius = counts.log_spectral_radius;
  all.spectral_radius = std::exp(counts.log_spectral_radius);
  all.sequences_binned = int64_t(counts.radius_percent.size());
  const double rows = double(counts.radius_percent.size());
  for (size_t k = 0; k < all.radius_percent.mean.size(); ++k) {
    double mean = 0, square = 0;
    for (const auto& row : counts.radius_percent) mean += row[k] / rows;
    for (const auto& row : counts.radius_percent) square += (row[k] - mean) * (row[k] - mean) / rows;
    all.radius_percent.mean[k] = rows > 0 ? mean : unknown;
    all.radius_percent.std[k] = rows > 0 ? std::sqrt(square) : unknown;
  }
  return statistics;
}

namespace {

/// Bins and counts of every eigenvalue, one row of bins a sequence.
StreamedCounts counts_of(const LayerSpectrum& spectrum, int64_t sequences) {
  StreamedCounts counts;
  counts.count = int64_t(spectrum.log_abs.size());
  counts.log_spectral_radius = -infinity;
  std::vector<double> edges;
  for (const double edge : radius_edges) edges.push_back(std::log(edge));
  const size_t each = spectrum.log_abs.size() / size_t(sequences);
  for (size_t b = 0; b < size_t(sequences); ++b) {
    std::vector<double> row(edges.size() - 1, 0.0);
    double usable = 0;
    for (size_t at = b * each; at < (b + 1) * each; ++at) {
      const double x = spectrum.log_abs[at];
      if (!(x < infinity) || (!spectrum.arg.empty() && !std::isfinite(spectrum.arg[at]))) {
        ++counts.non_finite;
        continue;
      }
      usable += 1;
      row[size_t(std::upper_bound(edges.begin() + 1, edges.end() - 1, x) - edges.begin() - 1)] += 1;
      counts.zeros += x == -infinity, counts.unit += x == 0, counts.expanding += x > 0;
      counts.log_spectral_radius = std::max(counts.log_spectral_radius, x);
    }
    if (usable == 0) continue;
    for (double& share : row) share *= 100 / usable;
    counts.radius_percent.push_back(std::move(row));
  }
  return counts;
}

}  // namespace

LayerSpectrum thinned(const LayerSpectrum& spectrum, int64_t most) {
  const bool channels = spectrum.kind == SpectrumKind::fixed_per_channel;
  if (spectrum.sampled() || (!channels && spectrum.kind != SpectrumKind::time_varying)) return spectrum;
  const int64_t rows = spectrum.shape[0];
  const int64_t each = rows > 0 ? int64_t(spectrum.log_abs.size()) / rows : 0;
  const int64_t kept = std::clamp<int64_t>(each > 0 ? most / each : rows, 1, std::max<int64_t>(rows, 1));
  if (kept >= rows) return spectrum;
  LayerSpectrum out = spectrum;
  out.streamed = counts_of(spectrum, channels ? 1 : rows);
  out.shape[0] = kept;
  out.log_abs.clear(), out.arg.clear(), out.channels.clear();
  for (int64_t n = 0; n < kept; ++n) {
    const int64_t row = channels ? n * rows / kept : n;
    const auto append = [&](const std::vector<double>& from, std::vector<double>& to) {
      if (!from.empty()) to.insert(to.end(), from.begin() + row * each, from.begin() + (row + 1) * each);
    };
    append(spectrum.log_abs, out.log_abs), append(spectrum.arg, out.arg);
    if (channels) out.channels.push_back(spectrum.channels.empty() ? row : spectrum.channels[size_t(row)]);
  }
  return out;
}

std::vector<int64_t> choose(int64_t n, int64_t count, uint64_t seed) {
  std::vector<int64_t> chosen;
  if (count >= n) {
    for (int64_t i = 0; i < n; ++i) chosen.push_back(i);
    return chosen;
  }
  Rng rng(seed, 0x5eec7);
  std::unordered_set<int64_t> seen;
  for (int64_t j = n - count; j < n; ++j) {
    const auto pick = static_cast<int64_t>(rng.u64() % static_cast<uint64_t>(j + 1));  // bias below 2⁻³⁰
    chosen.push_back(seen.insert(pick).second ? pick : (seen.insert(j), j));
  }
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

SpectrumSample sample_spectrum(const LayerSpectrum& spectrum, int64_t count, uint64_t seed) {
  SpectrumSample sample;
  const int64_t last = spectrum.shape.back();
  for (const int64_t at : choose(int64_t(spectrum.log_abs.size()), std::max<int64_t>(count, 0), seed)) {
    sample.log_abs.push_back(spectrum.log_abs[size_t(at)]);
    sample.arg.push_back(spectrum.arg.empty() ? 0.0 : spectrum.arg[size_t(at)]);
    const bool timed = spectrum.time_dependent();
    sample.sequence.push_back(timed ? at / last / spectrum.shape[1] : -1);
    sample.step.push_back(timed ? at / last % spectrum.shape[1] + spectrum.first_step : -1);
    int64_t head = -1;
    if (spectrum.kind == SpectrumKind::time_varying || spectrum.kind == SpectrumKind::fixed_per_head)
      head = at % last;
    else if (spectrum.kind == SpectrumKind::fixed_per_channel)
      head = spectrum.channels.empty() ? at / last : spectrum.channels[size_t(at / last)];
    else if (spectrum.kind == SpectrumKind::selective)
      head = spectrum.series[size_t(at % last)];
    sample.head.push_back(head);
  }
  return sample;
}

}  // namespace eigentrace
