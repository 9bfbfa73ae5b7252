#pragma once
// Step-by-step forms of the scans and long convolutions, in double: what the kernels must compute.
#include <cmath>
#include <complex>
#include <vector>

#include "tensor/rng.h"
#include "tensor/tensor.h"
#include "tensor/worse.h"

namespace eigentrace::test {

using Values = std::vector<double>;
using Z = std::complex<double>;

inline Values normal(int64_t n, uint64_t seed, double scale = 1, double shift = 0) {
  Rng rng(seed);
  Values v(static_cast<size_t>(n));
  for (double& x : v) x = shift + scale * rng.normal();
  return v;
}
inline Values uniform(int64_t n, uint64_t seed, double low, double high) {
  Rng rng(seed);
  Values v(static_cast<size_t>(n));
  for (double& x : v) x = rng.uniform(low, high);
  return v;
}
inline Tensor tensor(const Values& v, const Shape& shape, DType dtype = DType::f64) {
  const Tensor t = Tensor::from(v, shape);
  return dtype == DType::f64 ? t : t.clone(Device{}, dtype);
}

/// max |a − b| / max |b|
inline double distance(const Values& a, const Values& b) {
  double most = 1e-300, off = a.size() == b.size() ? 0 : INFINITY;
  for (size_t i = 0; i < b.size() && i < a.size(); ++i) {
    most = std::max(most, std::abs(b[i]));
    off = worse(off, std::abs(a[i] - b[i]));
  }
  return off / most;
}

inline Values naive_diagonal_scan(const Values& x, const Values& log_abs, const Values& arg, bool reverse,
                                  int64_t B, int64_t T) {
  const int64_t N = static_cast<int64_t>(arg.size());
  Values h(x.size());
  for (int64_t b = 0; b < B; ++b)
    for (int64_t n = 0; n < N; ++n) {
      const Z lambda = std::polar(std::exp(log_abs[static_cast<size_t>(n)]), arg[static_cast<size_t>(n)]);
      Z state = 0;
      for (int64_t i = 0; i < T; ++i) {
        const size_t at = static_cast<size_t>((b * T + (reverse ? T - 1 - i : i)) * 2 * N + n);
        state = lambda * state + Z(x[at], x[at + static_cast<size_t>(N)]);
        h[at] = state.real(), h[at + static_cast<size_t>(N)] = state.imag();
      }
    }
  return h;
}

struct SelectiveOperands {
  int64_t B, T, E, S;
  Values x, delta, a_log, b, c, d;
  SelectiveOperands(int64_t batch, int64_t time, int64_t channels, int64_t states)
      : B(batch),
        T(time),
        E(channels),
        S(states),
        x(normal(B * T * E, 1)),
        delta(uniform(B * T * E, 2, 0.01, 0.9)),
        a_log(normal(E * S, 3, 0.5)),
        b(normal(B * T * S, 4)),
        c(normal(B * T * S, 5)),
        d(normal(E, 6)) {}
  std::vector<Tensor> tensors(DType dtype = DType::f64) const {
    return {tensor(x, {B, T, E}, dtype), tensor(delta, {B, T, E}, dtype), tensor(a_log, {E, S}, dtype),
            tensor(b, {B, T, S}, dtype), tensor(c, {B, T, S}, dtype),     tensor(d, {E}, dtype)};
  }
  Values naive() const {
    Values y(x.size());
    for (int64_t batch = 0; batch < B; ++batch)
      for (int64_t e = 0; e < E; ++e) {
        Values h(static_cast<size_t>(S), 0.0);
        for (int64_t t = 0; t < T; ++t) {
          const size_t at = static_cast<size_t>((batch * T + t) * E + e);
          double sum = d[static_cast<size_t>(e)] * x[at];
          for (int64_t s = 0; s < S; ++s) {
            const size_t bc = static_cast<size_t>((batch * T + t) * S + s), i = static_cast<size_t>(s);
            const double a = -std::exp(a_log[static_cast<size_t>(e * S + s)]);
            h[i] = std::exp(delta[at] * a) * h[i] + delta[at] * b[bc] * x[at];
            sum += c[bc] * h[i];
          }
          y[at] = sum;
        }
      }
    return y;
  }
};

struct S4Operands {
  int64_t N, D;
  Values re, im, p, b, c, log_step;
  S4Operands(int64_t states, int64_t channels)
      : N(states),
        D(channels),
        re(uniform(N * D, 1, -1.0, -0.1)),
        im(normal(N * D, 2, 3)),
        p(normal(N * D * 2, 3, 0.5)),
        b(normal(N * D * 2, 4)),
        c(normal(N * D * 2, 5)),
        log_step(uniform(D, 6, -4, -2)) {}
  std::vector<Tensor> tensors(DType dtype = DType::f64) const {
    return {tensor(re, {N, D}, dtype),   tensor(im, {N, D}, dtype),   tensor(p, {N, D, 2}, dtype),
            tensor(b, {N, D, 2}, dtype), tensor(c, {N, D, 2}, dtype), tensor(log_step, {1, D}, dtype)};
  }
  /// The defining formula, with a slow inverse transform.
  Values naive(int64_t L) const {
    Values k(static_cast<size_t>(D * L));
    const double pi = std::acos(-1.0);
    for (int64_t d = 0; d < D; ++d) {
      const double step = std::exp(log_step[static_cast<size_t>(d)]);
      std::vector<Z> spectrum;
      for (int64_t f = 0; f < L; ++f) {
        const Z omega = std::polar(1.0, -2 * pi * static_cast<double>(f) / static_cast<double>(L));
        const Z g = 2 / step * (1.0 - omega) / (1.0 + omega), factor = 2.0 / (1.0 + omega);
        Z cb = 0, cp = 0, pb = 0, pp = 0, limit = 0;
        for (int64_t n = 0; n < N; ++n) {
          const size_t i = static_cast<size_t>(n * D + d);
          const Z P(p[2 * i], p[2 * i + 1]), Bn(b[2 * i], b[2 * i + 1]), C(c[2 * i], c[2 * i + 1]);
          const Z r = 1.0 / (g - Z(std::min(re[i], -1e-4), im[i]));
          cb += std::conj(C) * Bn * r, cp += std::conj(C) * P * r;
          pb += std::conj(P) * Bn * r, pp += std::conj(P) * P * r;
          limit += step / 2 * std::conj(C) * Bn;
        }
        spectrum.push_back(2 * f == L ? limit : factor * (cb - cp * pb / (1.0 + pp)));
      }
      for (int64_t t = 0; t < L; ++t) {
        Z sum = 0;
        for (int64_t f = 0; f < L; ++f)
          sum += spectrum[static_cast<size_t>(f)] *
                 std::polar(1.0, 2 * pi * static_cast<double>(f * t % L) / static_cast<double>(L));
        k[static_cast<size_t>(d * L + t)] = sum.real() / static_cast<double>(L);
      }
    }
    return k;
  }
};

inline Values naive_convolution(const Values& u, const Values& k, const Values& d, int64_t B, int64_t T,
                                int64_t D, int64_t L) {
  Values y(u.size());
  for (int64_t b = 0; b < B; ++b)
    for (int64_t t = 0; t < T; ++t)
      for (int64_t c = 0; c < D; ++c) {
        double sum = d[static_cast<size_t>(c)] * u[static_cast<size_t>((b * T + t) * D + c)];
        for (int64_t j = 0; j <= t && j < L; ++j)
          sum += k[static_cast<size_t>(c * L + j)] * u[static_cast<size_t>((b * T + t - j) * D + c)];
        y[static_cast<size_t>((b * T + t) * D + c)] = sum;
      }
  return y;
}

}  // namespace eigentrace::test
