#include "spectral/replay_states.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace eigentrace {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

/// An overflowed log η stands for "huge": 1e300 still makes exp(−log η) zero, and the two ratios it enters
/// cancel, where ∞ − ∞ would not.
double finite(double log_eta) { return std::isinf(log_eta) ? std::copysign(1e300, log_eta) : log_eta; }

/// log λ_i of head h as hi + lo. −∞ at i = 0 where λ_0 does not exist: the state before it is zero.
DoubleDouble log_lambda(const HeadInputs& in, int64_t i, int64_t h) {
  if (!in.altered.empty())
    if (const double x = in.altered[size_t(i * in.heads + h)]; !std::isnan(x)) return {x, 0};
  if (!in.log_eta.empty()) {
    if (i == 0) return {-infinity, 0};
    if (in.gauge == Gauge::readout_normalised) return {};
    return DoubleDouble::difference(finite(in.log_eta[size_t((i - 1) * in.heads + h)]),
                                    finite(in.log_eta[size_t(i * in.heads + h)]));
  }
  if (in.log_lambda.empty()) return {};
  return {in.log_lambda[size_t(in.lti ? h : i * in.heads + h)], 0};
}

/// log-scale of B (or C) at step i: −log η where the gauge puts η there.
double log_gain(const HeadInputs& in, int64_t i, int64_t h, Gauge side) {
  if (in.log_eta.empty() || in.gauge != side) return 0;
  return -finite(in.log_eta[size_t(i * in.heads + h)]);
}

}  // namespace

std::vector<double> sequence_of(const Tensor& tensor, int64_t b) {
  return tensor.defined() ? tensor.slice(0, b, 1).to_vector<double>() : std::vector<double>{};
}

HeadInputs head_inputs(const Realisation& system, int64_t b) {
  HeadInputs in;
  in.steps = system.steps(), in.heads = system.heads(), in.width = system.u.dim(3);
  in.v = sequence_of(system.u, b);
  const auto operands = [&](const Tensor& q, const Tensor& k, double scale) {
    in.q = sequence_of(q, b), in.k = sequence_of(k, b);
    in.groups = q.dim(2), in.state = q.dim(3), in.scale = scale;
  };
  if (const auto* factored = std::get_if<Factored>(&system.maps)) {
    operands(factored->q, factored->k, factored->scale);
    in.weight = sequence_of(factored->weight, b);
  } else {
    const auto& kernel = std::get<Kernel>(system.maps);
    operands(kernel.q, kernel.k, kernel.scale);
  }
  if (const auto* ratio = std::get_if<NormaliserRatio>(&system.lambda)) {
    in.log_eta = sequence_of(ratio->log_eta, b), in.gauge = ratio->gauge;
  } else {
    const Tensor& decay = std::get<ScalarDecay>(system.lambda).log_lambda;
    in.lti = decay.rank() == 1;
    in.log_lambda = in.lti ? decay.to_vector<double>() : sequence_of(decay, b);
  }
  return in;
}

void simulate_factored(const HeadInputs& in, int64_t h, double* y) {
  const int64_t n = in.state, width = in.width, group = h * in.groups / in.heads;
  std::vector<double> state(size_t(n * width), 0.0);  // h_i = state · exp(level)
  DoubleDouble level{-infinity, 0};
  for (int64_t i = 0; i < in.steps; ++i) {
    const double* q = &in.q[size_t((i * in.groups + group) * n)];
    const double* k = &in.k[size_t((i * in.groups + group) * n)];
    const double* v = &in.v[size_t((i * in.heads + h) * width)];
    const double weight = in.scale * (in.weight.empty() ? 1.0 : in.weight[size_t(i * in.heads + h)]);
    // The new level is the larger of the old state's and the input's, so that neither factor exceeds 1.
    const DoubleDouble rate = log_lambda(in, i, h);
    const DoubleDouble zero{-infinity, 0};
    const DoubleDouble decayed = level.hi == -infinity || rate.hi == -infinity ? zero : level.plus(rate);
    const DoubleDouble entered = weight == 0 ? zero
                                             : DoubleDouble{std::log(std::abs(weight)), 0}.plus(
                                                   {log_gain(in, i, h, Gauge::state_normalised), 0});
    level = decayed.hi >= entered.hi ? decayed : entered;
    const double keep = decayed.hi == -infinity ? 0.0 : std::exp(decayed.minus(level));
    const double enter =
        entered.hi == -infinity ? 0.0 : std::copysign(std::exp(entered.minus(level)), weight);
    double* out = y + i * width;
    std::fill(out, out + width, 0.0);
    for (int64_t s = 0; s < n; ++s) {
      double* row = &state[size_t(s * width)];
      const double in_s = enter * k[s], out_s = q[s];
#pragma omp simd
      for (int64_t p = 0; p < width; ++p) {
        row[p] = keep * row[p] + in_s * v[p];
        out[p] += out_s * row[p];
      }
    }
    const double read = level.hi == -infinity
                            ? 0.0
                            : std::exp((level.hi + log_gain(in, i, h, Gauge::readout_normalised)) + level.lo);
#pragma omp simd
    for (int64_t p = 0; p < width; ++p) out[p] *= read;
  }
}

void simulate_kernel(const HeadInputs& in, int64_t h, double* y) {
  const int64_t n = in.state, width = in.width, steps = in.steps;
  // Π_{l=j+1..i} λ_l = exp(product_i − product_j)
  std::vector<DoubleDouble> product(static_cast<size_t>(steps));
  for (int64_t i = 1; i < steps; ++i) {
    DoubleDouble rate = log_lambda(in, i, h);
    if (rate.hi == -infinity) rate = {-1e6, 0};  // λ = 0: no difference of infinities, and exp is 0
    product[size_t(i)] = product[size_t(i - 1)].plus(rate);
  }
  std::vector<double> weight(static_cast<size_t>(steps));
  for (int64_t i = 0; i < steps; ++i) {
    const double* q = &in.q[size_t((i * in.heads + h) * n)];
    for (int64_t j = 0; j <= i; ++j) {
      const double* k = &in.k[size_t((j * in.heads + h) * n)];
      double dot = 0;
#pragma omp simd reduction(+ : dot)
      for (int64_t s = 0; s < n; ++s) dot += q[s] * k[s];
      weight[size_t(j)] = std::exp(product[size_t(i)].minus(product[size_t(j)]) + in.scale * dot +
                                   log_gain(in, j, h, Gauge::state_normalised) +
                                   log_gain(in, i, h, Gauge::readout_normalised));
    }
    double* out = y + i * width;
    std::fill(out, out + width, 0.0);
    for (int64_t j = 0; j <= i; ++j) {
      const double* v = &in.v[size_t((j * in.heads + h) * width)];
      const double w = weight[size_t(j)];
#pragma omp simd
      for (int64_t p = 0; p < width; ++p) out[p] += w * v[p];
    }
  }
}

namespace {

struct ComplexHost {
  std::vector<double> re, im;
};

ComplexHost host_of(const ComplexTensor& tensor) {
  return {tensor.re.to_vector<double>(), tensor.im.to_vector<double>()};
}

/// h ← λ∘h + gain∘(b u), y += readout·Re(c h), steps taken forwards or backwards.
void scan(const ComplexHost& lambda, const ComplexHost& gain, const ComplexHost& b, const ComplexHost& c,
          double readout, bool reverse, const std::vector<double>& u, int64_t steps, int64_t width,
          std::vector<double>& y) {
  const int64_t n = int64_t(lambda.re.size());
  std::vector<double> re(size_t(n), 0.0), im(size_t(n), 0.0);
  for (int64_t t = 0; t < steps; ++t) {
    const int64_t i = reverse ? steps - 1 - t : t;
    const double* in = &u[size_t(i * width)];
    double* out = &y[size_t(i * width)];
    for (int64_t s = 0; s < n; ++s) {
      const double *b_re = &b.re[size_t(s * width)], *b_im = &b.im[size_t(s * width)];
      double x_re = 0, x_im = 0;
#pragma omp simd reduction(+ : x_re, x_im)
      for (int64_t d = 0; d < width; ++d) x_re += b_re[d] * in[d], x_im += b_im[d] * in[d];
      const size_t k = size_t(s);
      const double h_re = lambda.re[k] * re[k] - lambda.im[k] * im[k];
      const double h_im = lambda.re[k] * im[k] + lambda.im[k] * re[k];
      re[k] = h_re + gain.re[k] * x_re - gain.im[k] * x_im;
      im[k] = h_im + gain.re[k] * x_im + gain.im[k] * x_re;
    }
    for (int64_t d = 0; d < width; ++d) {
      const double *c_re = &c.re[size_t(d * n)], *c_im = &c.im[size_t(d * n)];
      double sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t s = 0; s < n; ++s) sum += c_re[s] * re[size_t(s)] - c_im[s] * im[size_t(s)];
      out[d] += readout * sum;
    }
  }
}

}  // namespace

void simulate_dense(const Realisation& system, int64_t b, std::vector<double>& y) {
  const auto& maps = std::get<Dense>(system.maps);
  const auto& diagonal = std::get<Diagonal>(system.lambda);
  const auto log_abs = diagonal.log_abs.to_vector<double>(), arg = diagonal.arg.to_vector<double>();
  ComplexHost lambda;
  for (size_t s = 0; s < arg.size(); ++s) {
    const double radius = std::exp(log_abs[s]);
    lambda.re.push_back(radius * std::cos(arg[s]));
    lambda.im.push_back(radius * std::sin(arg[s]));
  }
  ComplexHost gain{std::vector<double>(arg.size(), 1.0), std::vector<double>(arg.size(), 0.0)};
  if (maps.gain.re.defined()) gain.re = maps.gain.re.to_vector<double>();
  if (maps.gain.im.defined()) gain.im = maps.gain.im.to_vector<double>();
  const ComplexHost input = host_of(maps.b);
  const auto u = sequence_of(system.u, b);
  const int64_t steps = system.steps(), width = system.u.dim(2);
  y.assign(size_t(steps * width), 0.0);
  scan(lambda, gain, input, host_of(maps.c), maps.readout, false, u, steps, width, y);
  if (maps.c_backward.defined())
    scan(lambda, gain, input, host_of(maps.c_backward), maps.readout, true, u, steps, width, y);
}

void simulate_selective(const Realisation& system, int64_t batch_row, std::vector<double>& y,
                        const double* log_lambda) {
  const auto& maps = std::get<Selective>(system.maps);
  const auto& outer = std::get<Outer>(system.lambda);
  const auto u = sequence_of(system.u, batch_row), delta = sequence_of(outer.delta, batch_row);
  const auto b = sequence_of(maps.b, batch_row), c = sequence_of(maps.c, batch_row);
  const auto a = outer.a.to_vector<double>();
  const int64_t steps = system.steps(), width = system.u.dim(2), n = maps.b.dim(2);
  y.assign(size_t(steps * width), 0.0);
#pragma omp parallel for schedule(static)
  for (int64_t e = 0; e < width; ++e) {
    std::vector<double> h(size_t(n), 0.0);
    const double* rate = &a[size_t(e * n)];
    for (int64_t i = 0; i < steps; ++i) {
      const double step = delta[size_t(i * width + e)], input = step * u[size_t(i * width + e)];
      const double *b_i = &b[size_t(i * n)], *c_i = &c[size_t(i * n)];
      double sum = 0;
      for (int64_t s = 0; s < n; ++s) {
        const double log_rate = log_lambda ? log_lambda[(i * width + e) * n + s] : step * rate[s];
        h[size_t(s)] = std::exp(log_rate) * h[size_t(s)] + input * b_i[s];
        sum += c_i[s] * h[size_t(s)];
      }
      y[size_t(i * width + e)] = sum;
    }
  }
}

}  // namespace eigentrace
