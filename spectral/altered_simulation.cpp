// The simulation behind interventions: Λ is read, changed, and put in the place of the layer's own.
#include <algorithm>
#include <cmath>
#include <complex>
#include <limits>
#include <numeric>

#include "spectral/dplr.h"
#include "spectral/eigen.h"
#include "spectral/intervention.h"
#include "spectral/replay_states.h"
#include "tensor/error.h"
#include "tensor/worse.h"

namespace eigentrace {
namespace {

/// The system of sequence b alone, as views.
Realisation one_sequence(const Realisation& system, int64_t b) {
  Realisation one = system;
  const auto cut = [&](Tensor& tensor) {
    if (tensor.defined()) tensor = tensor.slice(0, b, 1);
  };
  cut(one.u);
  if (auto* ratio = std::get_if<NormaliserRatio>(&one.lambda)) cut(ratio->log_eta);
  if (auto* decay = std::get_if<ScalarDecay>(&one.lambda); decay && decay->log_lambda.rank() == 3)
    cut(decay->log_lambda);
  if (auto* outer = std::get_if<Outer>(&one.lambda)) cut(outer->delta);
  if (auto* maps = std::get_if<Factored>(&one.maps)) cut(maps->q), cut(maps->k), cut(maps->weight);
  if (auto* maps = std::get_if<Kernel>(&one.maps)) cut(maps->q), cut(maps->k);
  if (auto* maps = std::get_if<Selective>(&one.maps)) cut(maps->b), cut(maps->c);
  return one;
}

/// y [T,H,P] of one sequence of a system with heads.
std::vector<double> heads(const Realisation& one, const LayerSpectrum& before, const LayerSpectrum& after) {
  HeadInputs in = head_inputs(one, 0);
  if (after.time_dependent()) {
    in.altered.assign(size_t(in.steps * in.heads), std::numeric_limits<double>::quiet_NaN());
    const size_t offset = size_t(after.first_step * in.heads);
    for (size_t at = 0; at < after.log_abs.size(); ++at)
      if (after.log_abs[at] != before.log_abs[at]) in.altered[offset + at] = after.log_abs[at];
  } else {
    in.log_lambda = after.log_abs;
  }
  const bool factored = std::holds_alternative<Factored>(one.maps);
  std::vector<double> y(size_t(in.steps * in.heads * in.width));
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t h = 0; h < in.heads; ++h) {
    std::vector<double> head(size_t(in.steps * in.width));
    factored ? simulate_factored(in, h, head.data()) : simulate_kernel(in, h, head.data());
    for (int64_t i = 0; i < in.steps; ++i)
      std::copy_n(&head[size_t(i * in.width)], in.width, &y[size_t((i * in.heads + h) * in.width)]);
  }
  return y;
}

std::vector<Complex128> column(const ComplexTensor& tensor, int64_t channel) {
  const auto re = tensor.re.slice(1, channel, 1).to_vector<double>();
  const auto im = tensor.im.slice(1, channel, 1).to_vector<double>();
  std::vector<Complex128> values(re.size());
  for (size_t s = 0; s < re.size(); ++s) values[s] = {re[s], im[s]};
  return values;
}

}  // namespace

std::vector<double> AlteredSimulation::operator()(const Realisation& system, int64_t layer,
                                                  const Interventions& interventions) {
  check(system);
  const auto d = system.d.defined() ? system.d.to_vector<double>() : std::vector<double>();
  const int64_t each = system.u.numel() / system.batch();
  std::vector<double> all;
  if (std::holds_alternative<Channels>(system.maps)) {
    all = channels(system, layer, interventions);
  } else {
    for (int64_t b = 0; b < system.batch(); ++b) {
      Realisation one = one_sequence(system, b);
      ReadingOptions whole;
      whole.max_values = std::numeric_limits<int64_t>::max();
      const LayerSpectrum before = read_spectrum(one, layer, whole);
      LayerSpectrum after = before;
      interventions.alter(after, b);
      std::vector<double> y;
      if (auto* diagonal = std::get_if<Diagonal>(&one.lambda)) {
        diagonal->log_abs = Tensor::from(after.log_abs, diagonal->log_abs.shape());
        diagonal->arg = Tensor::from(after.arg, diagonal->arg.shape());
        simulate_dense(one, 0, y);
      } else if (std::holds_alternative<Outer>(one.lambda)) {
        simulate_selective(one, 0, y, after.log_abs.data());
      } else {
        y = heads(one, before, after);
      }
      all.insert(all.end(), y.begin(), y.end());
    }
  }
  if (d.empty()) return all;
  const auto u = system.u.to_vector<double>();
  const int64_t wide = system.u.dim(2), inner = system.u.rank() == 4 ? system.u.dim(3) : 1;
  for (int64_t at = 0; at < system.batch() * each; ++at)
    all[size_t(at)] += d[size_t(at / inner % wide)] * u[size_t(at)];
  return all;
}

std::vector<double> AlteredSimulation::channels(const Realisation& system, int64_t layer,
                                                const Interventions& interventions) {
  const auto& maps = std::get<Channels>(system.maps);
  const auto& dplr = std::get<Dplr>(system.lambda);
  const int64_t width = system.u.dim(2), states = dplr.lambda.re.dim(0), steps = system.steps();
  if (modes_.empty()) {
    // K_l = Re(C̄ Ā^l B̄) = Re Σ_k m_k λ_kˡ, m_k = (C̄ v_k)(y_kᴴ B̄)/(y_kᴴ v_k), C̄ v_k = conj(C) v_k/(1 − λ_kᴸ).
    const auto log_step = dplr.log_step.to_vector<double>();
    modes_.resize(size_t(width));
    std::vector<double> conditions(modes_.size());
    std::vector<std::string> errors(modes_.size());  // no exception may leave a parallel region
    use_one_blas_thread();
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t c = 0; c < width; ++c) try {
        const auto lambda = column(dplr.lambda, c), p = column(dplr.p, c), read = column(maps.c, c);
        const DplrChannel channel{lambda, p, std::exp(log_step[size_t(c)])};
        const auto input = discretise_input(channel, column(maps.b, c));
        const EigenResult eigen = eigen_general(states, dplr_state_matrix(channel), EigenDetail::vectors);
        conditions[size_t(c)] = eigen.max_condition();
        std::vector<Complex128> values, coefficients;
        for (int64_t k = 0; k < states; ++k) {
          const Complex128 value = bilinear(eigen.values[size_t(k)], channel.step);
          Complex128 seen = 0, driven = 0, scale = 0;
          for (int64_t s = 0; s < states; ++s) {
            const Complex128 right = eigen.right[size_t(k * states + s)];
            const Complex128 left = std::conj(eigen.left[size_t(k * states + s)]);
            seen += std::conj(read[size_t(s)]) * right, driven += left * input[size_t(s)],
                scale += left * right;
          }
          values.push_back(value);
          coefficients.push_back(seen / (1.0 - std::pow(value, double(maps.length))) * driven / scale);
        }
        for (const int64_t k : order_by_angle(values)) {
          const Complex128 m = coefficients[size_t(k)];
          modes_[size_t(c)].push_back({log_bilinear_radius(eigen.values[size_t(k)], channel.step),
                                       angle_of(values[size_t(k)]), m.real(), m.imag()});
        }
      } catch (const std::exception& error) {
        errors[size_t(c)] = error.what();
      }
    for (const std::string& error : errors)
      if (!error.empty()) {
        modes_.clear();
        fail(error);
      }
    condition_ = std::accumulate(conditions.begin(), conditions.end(), 0.0, worse);
  }
  LayerSpectrum spectrum;
  spectrum.layer = layer, spectrum.family = system.family, spectrum.kind = SpectrumKind::fixed_per_channel;
  spectrum.shape = {width, states}, spectrum.full_count = width * states;
  for (int64_t c = 0; c < width; ++c) {
    spectrum.channels.push_back(c);
    for (const Mode& mode : modes_[size_t(c)])
      spectrum.log_abs.push_back(mode.log_abs), spectrum.arg.push_back(mode.arg);
  }
  interventions.alter(spectrum);
  const auto u = system.u.to_vector<double>();
  std::vector<double> y(u.size());
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t c = 0; c < width; ++c) {
    std::vector<Complex128> lambda, gain, h(static_cast<size_t>(states));
    for (int64_t k = 0; k < states; ++k) {
      const size_t at = size_t(c * states + k);
      lambda.push_back(std::polar(std::exp(spectrum.log_abs[at]), spectrum.arg[at]));
      gain.push_back({modes_[size_t(c)][size_t(k)].re, modes_[size_t(c)][size_t(k)].im});
    }
    for (int64_t b = 0; b < system.batch(); ++b) {
      std::fill(h.begin(), h.end(), 0.0);
      for (int64_t i = 0; i < steps; ++i) {
        const size_t at = size_t((b * steps + i) * width + c);
        double sum = 0;
        for (size_t k = 0; k < h.size(); ++k) {
          const double re = lambda[k].real() * h[k].real() - lambda[k].imag() * h[k].imag() + u[at];
          const double im = lambda[k].real() * h[k].imag() + lambda[k].imag() * h[k].real();
          h[k] = {re, im};
          sum += gain[k].real() * re - gain[k].imag() * im;
        }
        y[at] = sum;
      }
    }
  }
  return y;
}

}  // namespace eigentrace
