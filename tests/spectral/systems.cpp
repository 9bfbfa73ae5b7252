#include "tests/spectral/systems.h"

#include <cmath>
#include <complex>

#include "tensor/rng.h"

namespace eigentrace {

namespace {

using Values = std::vector<double>;
using Complex = std::complex<double>;

constexpr int64_t batch = 2;

struct Draw {
  Rng rng;
  DType dtype;
  Tensor store(const Values& values, const Shape& shape) const {
    return Tensor::from(values, shape).clone({}, dtype);
  }
  Tensor uniform(const Shape& shape, double low, double high) {
    Values values(static_cast<size_t>(shape.numel()));
    for (double& value : values) value = rng.uniform(low, high);
    return store(values, shape);
  }
  ComplexTensor complex(const Shape& shape, double size) {
    const Tensor re = uniform(shape, -size, size);
    return {re, uniform(shape, -size, size)};
  }
};

Values values_of(const Tensor& tensor) { return tensor.to_vector<double>(); }

std::vector<Complex> values_of(const ComplexTensor& tensor) {
  const Values re = values_of(tensor.re), im = values_of(tensor.im);
  std::vector<Complex> values(re.size());
  for (size_t i = 0; i < re.size(); ++i) values[i] = {re[i], im[i]};
  return values;
}

double dot(const Values& a, size_t at, const Values& b, size_t bt, int64_t n) {
  double sum = 0;
  for (size_t s = 0; s < size_t(n); ++s) sum += a[at + s] * b[bt + s];
  return sum;
}

/// y_i = Σ_{j≤i} weight(b, h, i, j, q_i·k_j) v_j + d_h v_i.
template <class Weight>
Values sum_over_past(const Tensor& q, const Tensor& k, const Tensor& v, const Values& d,
                     const Weight& weight) {
  const int64_t steps = v.dim(1), heads = v.dim(2), width = v.dim(3), groups = q.dim(2), n = q.dim(3);
  const Values qs = values_of(q), ks = values_of(k), vs = values_of(v);
  Values y(vs.size(), 0.0);
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t i = 0; i < steps; ++i)
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t g = h * groups / heads;
        double* out = &y[size_t(((b * steps + i) * heads + h) * width)];
        for (int64_t j = 0; j <= i; ++j) {
          const size_t at = size_t(((b * steps + i) * groups + g) * n);
          const double w = weight(b, h, i, j, dot(qs, at, ks, size_t(((b * steps + j) * groups + g) * n), n));
          for (int64_t p = 0; p < width; ++p)
            out[p] += w * vs[size_t(((b * steps + j) * heads + h) * width + p)];
        }
        if (!d.empty())
          for (int64_t p = 0; p < width; ++p)
            out[p] += d[size_t(h)] * vs[size_t(((b * steps + i) * heads + h) * width + p)];
      }
  return y;
}

/// y[b,i,c] += Σ_{j≤i} K_{i−j}[c,e] u[b,j,e] for a kernel [T, D, D] or, diagonal, [T, D].
Values convolve(const Values& kernel, bool diagonal, const Values& u, int64_t steps, int64_t width,
                bool reverse) {
  Values y(u.size(), 0.0);
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t i = 0; i < steps; ++i)
      for (int64_t j = 0; j < steps; ++j) {
        const int64_t lag = reverse ? j - i : i - j;
        if (lag < 0) continue;
        for (int64_t c = 0; c < width; ++c)
          for (int64_t e = 0; e < width; ++e) {
            if (diagonal && e != c) continue;
            const double k =
                diagonal ? kernel[size_t(lag * width + c)] : kernel[size_t((lag * width + c) * width + e)];
            y[size_t((b * steps + i) * width + c)] += k * u[size_t((b * steps + j) * width + e)];
          }
      }
  return y;
}

void add_feed_through(Values& y, const Values& d, const Values& u) {
  for (size_t at = 0; at < y.size(); ++at) y[at] += d[at % d.size()] * u[at];
}

}  // namespace

TestSystem softmax_system(int64_t steps, DType dtype, uint64_t seed) {
  Draw draw{Rng(seed, 1), dtype};
  const int64_t heads = 2, n = 5, width = 3;
  Kernel maps{draw.uniform({batch, steps, heads, n}, -3, 3), draw.uniform({batch, steps, heads, n}, -3, 3),
              1 / std::sqrt(double(n))};
  const Tensor v = draw.uniform({batch, steps, heads, width}, -1, 1);
  Values log_eta(size_t(batch * steps * heads), 0.0);
  const auto eta = [&](int64_t b, int64_t h, int64_t i) -> double& {
    return log_eta[size_t((b * steps + i) * heads + h)];
  };
  sum_over_past(maps.q, maps.k, v, {}, [&](int64_t b, int64_t h, int64_t i, int64_t, double qk) {
    return eta(b, h, i) += std::exp(maps.scale * qk);
  });
  for (double& value : log_eta) value = std::log(value);
  const Values y =
      sum_over_past(maps.q, maps.k, v, {}, [&](int64_t b, int64_t h, int64_t i, int64_t, double qk) {
        return std::exp(maps.scale * qk - eta(b, h, i));
      });
  Realisation system{
      Family::softmax_attention, NormaliserRatio{draw.store(log_eta, {batch, steps, heads})}, maps, v, {}};
  return {system, draw.store(y, v.shape())};
}

TestSystem linear_system(int64_t steps, DType dtype, uint64_t seed) {
  Draw draw{Rng(seed, 2), dtype};
  const int64_t heads = 2, n = 5, width = 3;
  Factored maps{draw.uniform({batch, steps, heads, n}, 0.01, 2),
                draw.uniform({batch, steps, heads, n}, 0.01, 2),
                {},
                1};
  const Tensor v = draw.uniform({batch, steps, heads, width}, -1, 1);
  Values eta(size_t(batch * steps * heads), 0.0);
  const auto at = [&](int64_t b, int64_t h, int64_t i) { return size_t((b * steps + i) * heads + h); };
  sum_over_past(maps.q, maps.k, v, {},
                [&](int64_t b, int64_t h, int64_t i, int64_t, double qk) { return eta[at(b, h, i)] += qk; });
  const Values y = sum_over_past(
      maps.q, maps.k, v, {},
      [&](int64_t b, int64_t h, int64_t i, int64_t, double qk) { return qk / eta[at(b, h, i)]; });
  for (double& value : eta) value = std::log(value);
  Realisation system{
      Family::linear_attention, NormaliserRatio{draw.store(eta, {batch, steps, heads})}, maps, v, {}};
  return {system, draw.store(y, v.shape())};
}

TestSystem norm_system_offset(int64_t steps, DType dtype, uint64_t seed, double offset) {
  Draw draw{Rng(seed, 3), dtype};
  const int64_t heads = 2, n = 5, width = 3;
  Factored maps{draw.uniform({batch, steps, heads, n}, -1, 1),
                draw.uniform({batch, steps, heads, n}, -1, 1),
                {},
                1 / std::sqrt(double(n))};
  const Tensor v = draw.uniform({batch, steps, heads, width}, -1, 1);
  const Tensor scores = draw.uniform({batch, steps, heads}, -1, 0);
  Values log_eta = values_of(scores);
  for (double& value : log_eta) value = std::exp(value + offset);
  const Tensor stored = draw.store(log_eta, scores.shape());
  log_eta = values_of(stored);  // the layer's own f(n + o), in its own type
  const Values y =
      sum_over_past(maps.q, maps.k, v, {}, [&](int64_t b, int64_t h, int64_t i, int64_t, double qk) {
        return maps.scale * qk * std::exp(-log_eta[size_t((b * steps + i) * heads + h)]);
      });
  return {{Family::norm_attention, NormaliserRatio{stored}, maps, v, {}}, draw.store(y, v.shape())};
}

TestSystem mamba2_system(int64_t steps, DType dtype, uint64_t seed) {
  Draw draw{Rng(seed, 4), dtype};
  const int64_t heads = 4, groups = 2, n = 5, width = 3;
  const Tensor delta = draw.uniform({batch, steps, heads}, 0.001, 0.7);
  Values log_lambda = values_of(delta);
  for (size_t at = 0; at < log_lambda.size(); ++at) log_lambda[at] *= -1.0 - double(at % size_t(heads));
  const Tensor stored = draw.store(log_lambda, delta.shape());
  log_lambda = values_of(stored);
  Factored maps{draw.uniform({batch, steps, groups, n}, -1, 1),
                draw.uniform({batch, steps, groups, n}, -1, 1), delta, 1};
  const Tensor v = draw.uniform({batch, steps, heads, width}, -1, 1), d = draw.uniform({heads}, 0, 1);
  const Values w = values_of(delta);
  const Values y = sum_over_past(maps.q, maps.k, v, values_of(d),
                                 [&](int64_t b, int64_t h, int64_t i, int64_t j, double qk) {
                                   double sum = 0;
                                   for (int64_t l = j + 1; l <= i; ++l)
                                     sum += log_lambda[size_t((b * steps + l) * heads + h)];
                                   return std::exp(sum) * w[size_t((b * steps + j) * heads + h)] * qk;
                                 });
  return {{Family::mamba2, ScalarDecay{stored}, maps, v, d}, draw.store(y, v.shape())};
}

TestSystem pseudo_lti_system(int64_t steps, DType dtype, uint64_t seed) {
  Draw draw{Rng(seed, 5), dtype};
  const int64_t heads = 2, n = 6, width = 3;
  const Tensor log_lambda = draw.uniform({heads}, -0.5, -0.001);
  const Values rates = values_of(log_lambda);
  Factored maps{draw.uniform({batch, steps, 1, n}, -1, 1), draw.uniform({batch, steps, 1, n}, -1, 1), {}, 1};
  const Tensor v = draw.uniform({batch, steps, heads, width}, -1, 1), d = draw.uniform({heads}, 0, 1);
  const Values y = sum_over_past(maps.q, maps.k, v, values_of(d),
                                 [&](int64_t, int64_t h, int64_t i, int64_t j, double qk) {
                                   return std::exp(rates[size_t(h)] * double(i - j)) * qk;
                                 });
  return {{Family::mamba2_pseudo_lti, ScalarDecay{log_lambda}, maps, v, d}, draw.store(y, v.shape())};
}

TestSystem mamba1_system(int64_t steps, DType dtype, uint64_t seed) {
  Draw draw{Rng(seed, 6), dtype};
  const int64_t width = 4, n = 3;
  const Tensor delta = draw.uniform({batch, steps, width}, 0.001, 0.5),
               a = draw.uniform({width, n}, -3, -0.5);
  const Selective maps{draw.uniform({batch, steps, n}, -1, 1), draw.uniform({batch, steps, n}, -1, 1)};
  const Tensor u = draw.uniform({batch, steps, width}, -1, 1), d = draw.uniform({width}, 0, 1);
  const Values deltas = values_of(delta), rates = values_of(a), us = values_of(u), bs = values_of(maps.b),
               cs = values_of(maps.c);
  Values y(us.size(), 0.0);
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t i = 0; i < steps; ++i)
      for (int64_t e = 0; e < width; ++e)
        for (int64_t j = 0; j <= i; ++j) {
          double time = 0;
          for (int64_t l = j + 1; l <= i; ++l) time += deltas[size_t((b * steps + l) * width + e)];
          const size_t at = size_t((b * steps + j) * width + e);
          for (int64_t s = 0; s < n; ++s)
            y[size_t((b * steps + i) * width + e)] += cs[size_t((b * steps + i) * n + s)] *
                                                      std::exp(time * rates[size_t(e * n + s)]) * deltas[at] *
                                                      bs[size_t((b * steps + j) * n + s)] * us[at];
        }
  add_feed_through(y, values_of(d), us);
  return {{Family::mamba1, Outer{delta, a}, maps, u, d}, draw.store(y, u.shape())};
}

namespace {

TestSystem diagonal_system(Family family, int64_t steps, Draw draw) {
  const bool s5 = family == Family::s5;
  const int64_t width = 3, n = 6;
  const Diagonal lambda{draw.uniform({n}, -0.2, -0.001), draw.uniform({n}, -3, 3)};
  Dense maps{draw.complex({n, width}, 1), draw.complex({width, n}, 1), {}, {}, s5 ? 2.0 : 1.0};
  maps.gain = draw.complex({n}, 1);
  if (s5)
    maps.c_backward = draw.complex({width, n}, 1);
  else
    maps.gain.im = {};  // LRU: real
  const Tensor u = draw.uniform({batch, steps, width}, -1, 1), d = draw.uniform({width}, 0, 1);
  const Values radius = values_of(lambda.log_abs), angle = values_of(lambda.arg),
               gain_re = values_of(maps.gain.re),
               gain_im = s5 ? values_of(maps.gain.im) : Values(size_t(n), 0.0);
  const auto input = values_of(maps.b);
  const auto kernel = [&](const ComplexTensor& c) {
    const auto output = values_of(c);
    Values k(size_t(steps * width * width), 0.0);
    for (int64_t l = 0; l < steps; ++l)
      for (size_t s = 0; s < size_t(n); ++s) {
        const Complex power = std::polar(std::exp(radius[s] * double(l)), angle[s] * double(l));
        for (int64_t c_ = 0; c_ < width; ++c_)
          for (int64_t e = 0; e < width; ++e)
            k[size_t((l * width + c_) * width + e)] +=
                maps.readout *
                std::real(output[size_t(c_ * n) + s] * power * Complex(gain_re[s], gain_im[s]) *
                          input[s * size_t(width) + size_t(e)]);
      }
    return k;
  };
  const Values us = values_of(u);
  Values y = convolve(kernel(maps.c), false, us, steps, width, false);
  if (s5) {
    const Values back = convolve(kernel(maps.c_backward), false, us, steps, width, true);
    for (size_t at = 0; at < y.size(); ++at) y[at] += back[at];
  }
  add_feed_through(y, values_of(d), us);
  return {{family, lambda, maps, u, d}, draw.store(y, u.shape())};
}

}  // namespace

TestSystem lru_system(int64_t steps, DType dtype, uint64_t seed) {
  return diagonal_system(Family::lru, steps, {Rng(seed, 7), dtype});
}

TestSystem s5_bidirectional_system(int64_t steps, DType dtype, uint64_t seed) {
  return diagonal_system(Family::s5, steps, {Rng(seed, 8), dtype});
}

TestSystem s4_system(int64_t steps, DType dtype, uint64_t seed) {
  Draw draw{Rng(seed, 9), dtype};
  const int64_t width = 3, n = 4;
  const Shape shape{n, width};
  const Dplr lambda{{draw.uniform(shape, -1, -0.3), draw.uniform(shape, -6, 6)},
                    draw.complex(shape, 1),
                    draw.uniform({1, width}, -3, -1.5)};
  const Channels maps{draw.complex(shape, 1), draw.complex(shape, 1), steps};
  const Tensor u = draw.uniform({batch, steps, width}, -1, 1), d = draw.uniform({1, width}, 0, 1);
  const auto poles = values_of(lambda.lambda), p = values_of(lambda.p), b = values_of(maps.b),
             c = values_of(maps.c);
  const Values log_step = values_of(lambda.log_step), us = values_of(u);
  // The published generating function at the roots of unity, then the inverse DFT term by term.
  Values kernel(size_t(steps * width), 0.0);
  const double pi = std::acos(-1.0);
  for (int64_t w = 0; w < width; ++w) {
    const double step = std::exp(log_step[size_t(w)]);
    for (int64_t f = 0; f < steps; ++f) {
      const Complex omega = std::polar(1.0, -2 * pi * double(f) / double(steps));
      Complex cb = 0, cp = 0, pb = 0, pp = 0, spectrum;
      const bool limit = 2 * f == steps;
      const Complex g = limit ? Complex(1) : 2.0 / step * (1.0 - omega) / (1.0 + omega);
      for (size_t s = 0; s < size_t(n); ++s) {
        const size_t at = s * size_t(width) + size_t(w);
        const Complex pole = limit ? Complex(1) : 1.0 / (g - poles[at]);
        cb += std::conj(c[at]) * b[at] * pole, cp += std::conj(c[at]) * p[at] * pole;
        pb += std::conj(p[at]) * b[at] * pole, pp += std::conj(p[at]) * p[at] * pole;
      }
      spectrum = limit ? step / 2 * cb : 2.0 / (1.0 + omega) * (cb - cp * pb / (1.0 + pp));
      for (int64_t l = 0; l < steps; ++l)
        kernel[size_t(l * width + w)] +=
            std::real(spectrum * std::polar(1.0, 2 * pi * double(f * l % steps) / double(steps))) /
            double(steps);
    }
  }
  Values y = convolve(kernel, true, us, steps, width, false);
  add_feed_through(y, values_of(d), us);
  return {{Family::s4, lambda, maps, u, d}, draw.store(y, u.shape())};
}

std::vector<SystemBuilder> all_systems() {
  return {softmax_system, linear_system,           norm_system,
          mamba2_system,  pseudo_lti_system,       mamba1_system,
          lru_system,     s5_bidirectional_system, s4_system};
}

}  // namespace eigentrace
