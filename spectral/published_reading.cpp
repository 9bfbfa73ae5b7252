#include "spectral/published_reading.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>

#include "spectral/published.h"
#include "tensor/error.h"

namespace eigentrace {

namespace {

/// A head's series [T'] into column h of [B,T',H].
void place(LayerSpectrum& out, int64_t b, int64_t h, const std::vector<double>& series) {
  const int64_t steps = out.shape[1], heads = out.shape[2];
  for (int64_t i = 0; i < steps; ++i) out.log_abs[size_t((b * steps + i) * heads + h)] = series[size_t(i)];
}

/// log η of one head's rows from its scores q_i·k_j, j ≤ i, taken in T; q, k of one sequence [T,G,N].
template <class T>
std::vector<double> log_etas(const std::vector<T>& q, const std::vector<T>& k, int64_t steps, int64_t groups,
                             int64_t group, bool softmax) {
  const int64_t n = int64_t(q.size()) / (steps * groups);
  std::vector<double> log_eta(static_cast<size_t>(steps));
#pragma omp parallel for schedule(dynamic, 16)
  for (int64_t i = 0; i < steps; ++i) {
    std::vector<T> scores(size_t(i + 1));
    const T* a = &q[size_t((i * groups + group) * n)];
    for (int64_t j = 0; j <= i; ++j) {
      const T* b = &k[size_t((j * groups + group) * n)];
      T dot = 0;
#pragma omp simd reduction(+ : dot)
      for (int64_t s = 0; s < n; ++s) dot += a[s] * b[s];
      scores[size_t(j)] = dot;
    }
    const std::span<const T> row(scores);
    log_eta[size_t(i)] =
        softmax ? published_softmax_log_eta<T>(row, i, steps) : published_linear_log_eta<T>(row, i);
  }
  return log_eta;
}

template <class T>
void attention(const Realisation& system, const Tensor& q, const Tensor& k, LayerSpectrum& out) {
  const bool softmax = system.family == Family::softmax_attention;
  const int64_t steps = system.steps(), heads = system.heads(), groups = q.dim(2);
  for (int64_t b = 0; b < system.batch(); ++b) {
    const auto qs = q.slice(0, b, 1).to_vector<T>(), ks = k.slice(0, b, 1).to_vector<T>();
    for (int64_t h = 0; h < heads; ++h)
      place(out, b, h, published_ratios(log_etas(qs, ks, steps, groups, h * groups / heads, softmax)));
  }
}

/// log λ as a number of type T holds λ: Mamba-2's λ = exp(log λ), or norm attention's ν = exp(−f).
template <class T>
double through(double log_value) {
  return std::log(double(std::exp(T(log_value))));
}

template <class T>
void norm(const Realisation& system, const Tensor& log_eta, LayerSpectrum& out) {
  const int64_t steps = system.steps(), heads = system.heads();
  for (int64_t b = 0; b < system.batch(); ++b) {
    const auto f = log_eta.slice(0, b, 1).to_vector<double>();
    std::vector<double> minus_log_nu(static_cast<size_t>(steps));
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t i = 0; i < steps; ++i) {
        const double log_nu = through<T>(-f[size_t(i * heads + h)]);
        minus_log_nu[size_t(i)] = -(std::isinf(log_nu) && log_nu < 0 ? std::log(2e-23) : log_nu);
      }
      place(out, b, h, published_ratios(minus_log_nu));
    }
  }
}

template <class T>
void decay(const Realisation& system, const Tensor& log_lambda, LayerSpectrum& out) {
  const auto values = log_lambda.to_vector<double>();
  for (size_t at = 0; at < out.log_abs.size(); ++at)
    out.log_abs[at] = through<T>(values[log_lambda.rank() == 1 ? at % size_t(system.heads()) : at]);
}

template <class T>
std::vector<std::complex<T>> column(const ComplexTensor& tensor, int64_t channel) {
  const auto re = tensor.re.slice(1, channel, 1).to_vector<T>();
  const auto im = tensor.im.slice(1, channel, 1).to_vector<T>();
  std::vector<std::complex<T>> values(re.size());
  for (size_t s = 0; s < re.size(); ++s) values[s] = {re[s], im[s]};
  return values;
}

template <class T>
void one_channel(const Dplr& dplr, LayerSpectrum& out) {
  if (dplr.lambda.re.dim(1) <= published_s4_channel)
    fail("read_published: the published analysis reads channel " + std::to_string(published_s4_channel) +
         " (from 0), found a layer of " + std::to_string(dplr.lambda.re.dim(1)));
  const auto lambda = column<T>(dplr.lambda, published_s4_channel);
  const auto p = column<T>(dplr.p, published_s4_channel);
  const T step = std::exp(dplr.log_step.to_vector<T>()[size_t(published_s4_channel)]);
  const PublishedEigenvalues found = published_s4<T>(lambda, p, step);
  out.kind = SpectrumKind::fixed_per_channel;
  out.shape = {1, int64_t(lambda.size())}, out.channels = {published_s4_channel};
  out.log_abs = found.log_abs, out.arg = found.arg;
}

template <class T>
bool read(const Realisation& system, LayerSpectrum& out) {
  const int64_t batch = system.batch(), steps = system.steps(), heads = system.heads();
  const auto varying = [&](int64_t first) {
    out.first_step = first, out.shape = {batch, steps - first, heads};
    out.log_abs.resize(size_t(batch * (steps - first) * heads));
  };
  if (const auto* kernel = std::get_if<Kernel>(&system.maps)) {
    varying(1), attention<T>(system, kernel->q, kernel->k, out);
  } else if (system.family == Family::linear_attention) {
    const auto& maps = std::get<Factored>(system.maps);
    varying(1), attention<T>(system, maps.q, maps.k, out);
  } else if (const auto* ratio = std::get_if<NormaliserRatio>(&system.lambda)) {
    varying(1), norm<T>(system, ratio->log_eta, out);
  } else if (const auto* scalar = std::get_if<ScalarDecay>(&system.lambda)) {
    varying(0), decay<T>(system, scalar->log_lambda, out);
  } else if (const auto* dplr = std::get_if<Dplr>(&system.lambda)) {
    one_channel<T>(*dplr, out);
  } else {
    return false;
  }
  return true;
}

/// log|λ| and arg λ as a plain pair of reals.
std::complex<double> eigenvalue(const LayerSpectrum& spectrum, size_t at) {
  const double radius = std::exp(spectrum.log_abs[at]);
  return spectrum.arg.empty() ? std::complex<double>(radius, 0) : std::polar(radius, spectrum.arg[at]);
}

bool finite(std::complex<double> z) { return std::isfinite(z.real()) && std::isfinite(z.imag()); }

using Pairs = std::vector<std::pair<size_t, size_t>>;  // exact, published

/// Nearest pairs first, each eigenvalue once: the order of an eigensolver means nothing.
Pairs nearest(const LayerSpectrum& exact, size_t from, const LayerSpectrum& published) {
  const size_t n = published.log_abs.size();
  std::vector<std::tuple<double, size_t, size_t>> distances;
  for (size_t a = 0; a < n; ++a)
    for (size_t b = 0; b < n; ++b) {
      const double distance = std::abs(eigenvalue(exact, from + a) - eigenvalue(published, b));
      distances.emplace_back(std::isnan(distance) ? HUGE_VAL : distance, a, b);
    }
  std::sort(distances.begin(), distances.end());
  std::vector<char> used_a(n, 0), used_b(n, 0);
  Pairs pairs;
  for (const auto& [distance, a, b] : distances)
    if (!used_a[a] && !used_b[b]) used_a[a] = used_b[b] = 1, pairs.emplace_back(from + a, b);
  return pairs;
}

Pairs pairs_of(const LayerSpectrum& exact, const LayerSpectrum& published) {
  if (published.kind == SpectrumKind::fixed_per_channel && exact.kind == SpectrumKind::fixed_per_channel &&
      exact.shape[1] == published.shape[1]) {
    const auto found = std::find(exact.channels.begin(), exact.channels.end(), published.channels[0]);
    if (found == exact.channels.end())
      fail("compare_readings: exact: channel " + std::to_string(published.channels[0]) +
           " expected among those read; read all channels");
    return nearest(exact, size_t((found - exact.channels.begin()) * exact.shape[1]), published);
  }
  const bool repeated = exact.kind == SpectrumKind::fixed_per_head &&
                        published.kind == SpectrumKind::time_varying && published.shape[2] == exact.shape[0];
  if (!repeated && exact.shape != published.shape)
    fail("compare_readings: layer " + std::to_string(exact.layer) + ": " +
         std::to_string(exact.log_abs.size()) + " exact eigenvalues do not go with " +
         std::to_string(published.log_abs.size()) + " published ones; read both on the same batch");
  Pairs pairs;
  for (size_t at = 0; at < published.log_abs.size(); ++at)
    pairs.emplace_back(repeated ? at % exact.log_abs.size() : at, at);
  return pairs;
}

}  // namespace

std::optional<LayerSpectrum> read_published(const Realisation& system, int64_t layer) {
  check(system);
  LayerSpectrum out;
  if (std::holds_alternative<Diagonal>(system.lambda) && system.family != Family::s5)
    out = read_spectrum(system, layer);
  else if (!(system.u.dtype() == DType::f64 ? read<double>(system, out) : read<float>(system, out)))
    return std::nullopt;
  out.layer = layer, out.family = system.family, out.reading = "published";
  out.full_count = int64_t(out.log_abs.size());
  return out;
}

LayerSpectrum read_published_s5(const ComplexTensor& lambda, const Tensor& log_step, int64_t layer) {
  const auto re = lambda.re.to_vector<double>(), im = lambda.im.to_vector<double>();
  std::vector<std::complex<double>> values(re.size());
  for (size_t s = 0; s < re.size(); ++s) values[s] = {re[s], im[s]};
  const PublishedEigenvalues found = published_s5(values, log_step.to_vector<double>());
  LayerSpectrum out;
  out.layer = layer, out.family = Family::s5, out.reading = "published", out.kind = SpectrumKind::fixed;
  out.shape = {int64_t(re.size())}, out.full_count = int64_t(re.size());
  out.log_abs = found.log_abs, out.arg = found.arg;
  return out;
}

ReadingComparison compare_readings(const LayerSpectrum& exact, const LayerSpectrum& published) {
  if (exact.layer != published.layer || exact.family != published.family)
    fail("compare_readings: expected two readings of one layer, found layers " + std::to_string(exact.layer) +
         " and " + std::to_string(published.layer));
  ReadingComparison result;
  result.layer = exact.layer;
  std::vector<double> differences, logs;
  for (const auto& [a, b] : pairs_of(exact, published)) {
    const auto x = eigenvalue(exact, a), y = eigenvalue(published, b);
    if (!finite(x) || !finite(y)) {
      ++result.non_finite;
      continue;
    }
    differences.push_back(std::abs(y - x));
    const double log_difference = std::abs(published.log_abs[b] - exact.log_abs[a]);
    if (std::isfinite(log_difference)) logs.push_back(log_difference);
  }
  const Summary difference = summarise(differences);
  result.count = difference.count;
  result.mean_difference = difference.mean, result.median_difference = difference.quantiles[3];
  result.mean_log_difference = summarise(logs).mean;
  const SpectrumStatistics of_exact = layer_statistics(exact).all;
  const SpectrumStatistics half_open = layer_statistics(published).all;
  const SpectrumStatistics closed = layer_statistics(published, Binning::published).all;
  result.exact_mean = of_exact.radius.mean, result.exact_std = of_exact.radius.std;
  result.published_mean = half_open.radius.mean, result.published_std = half_open.radius.std;
  result.exact_percent = of_exact.radius_percent.mean;
  result.published_percent = half_open.radius_percent.mean;
  result.published_as_published = closed.radius_percent.mean;
  return result;
}

}  // namespace eigentrace
