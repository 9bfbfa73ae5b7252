#include "spectral/secular.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "tensor/error.h"
#include "tensor/worse.h"

namespace eigentrace {
namespace {

using Complex128 = std::complex<double>;
constexpr double unit = std::numeric_limits<double>::epsilon() / 2;  // relative error of one rounding
constexpr int64_t max_iterations = 100;

// Poles (distinct, weight > 0) and the current roots, as separate real arrays so that the loops vectorise.
struct Secular {
  std::vector<double> pole_re, pole_im, weight, root_re, root_im;
  int64_t size() const { return static_cast<int64_t>(weight.size()); }
};

// Sums are taken in blocks: their error is then that of a block's length plus the number of blocks, whatever
// the compiler does inside a block.
constexpr int64_t block = 64;

// f and what the iteration and the bounds need of it at one point.
struct Value {
  Complex128 f, derivative;   // f, f'
  Complex128 log_derivative;  // Σ 1/(z − Λ_n)
  double magnitude, squares;  // 1 + Σ|P|²/|z − Λ|, Σ|P|²/|z − Λ|²
  /// Bound of |computed f − f|: 12 roundings a term, then those of the two sums.
  double error(int64_t n) const {
    const int64_t roundings = std::min(n, block) + n / block + 13;
    return unit * static_cast<double>(roundings) * magnitude;
  }
};

Value evaluate(const Secular& s, double re, double im) {
  Value value{1, 0, 0, 1, 0};
  const double *pr = s.pole_re.data(), *pi = s.pole_im.data(), *w = s.weight.data();
  for (int64_t begin = 0; begin < s.size(); begin += block) {
    const int64_t end = std::min(begin + block, s.size());
    double f_re = 0, f_im = 0, d_re = 0, d_im = 0, l_re = 0, l_im = 0, magnitude = 0, squares = 0;
#pragma omp simd reduction(+ : f_re, f_im, d_re, d_im, l_re, l_im, magnitude, squares)
    for (int64_t n = begin; n < end; ++n) {
      const double x = re - pr[n], y = im - pi[n], inverse = 1 / (x * x + y * y);
      const double u = x * inverse, v = -y * inverse;  // 1/(z − Λ_n)
      l_re += u, l_im += v;
      f_re += w[n] * u, f_im += w[n] * v;
      d_re -= w[n] * (u * u - v * v), d_im -= 2 * w[n] * u * v;
      squares += w[n] * inverse;
      magnitude += w[n] * std::sqrt(inverse);
    }
    value.f += Complex128(f_re, f_im), value.derivative += Complex128(d_re, d_im);
    value.log_derivative += Complex128(l_re, l_im);
    value.magnitude += magnitude, value.squares += squares;
  }
  return value;
}

// Σ_{j in [begin, end)} 1/(z − z_j)
Complex128 repulsion(const Secular& s, double re, double im, int64_t begin, int64_t end) {
  double sum_re = 0, sum_im = 0;
  const double *zr = s.root_re.data(), *zi = s.root_im.data();
#pragma omp simd reduction(+ : sum_re, sum_im)
  for (int64_t j = begin; j < end; ++j) {
    const double x = re - zr[j], y = im - zi[j], inverse = 1 / (x * x + y * y);
    sum_re += x * inverse, sum_im -= y * inverse;
  }
  return {sum_re, sum_im};
}

bool finite(Complex128 z) { return std::isfinite(z.real()) && std::isfinite(z.imag()); }

// Moves every root until its own value is rounding noise or it stops moving. Returns the sweeps taken.
int64_t iterate(Secular& s) {
  const int64_t n = s.size();
  std::vector<char> settled(n, 0);
  int64_t sweep = 0, left = n;
  for (; sweep < max_iterations && left > 0; ++sweep) {
    for (int64_t k = 0; k < n; ++k) {
      if (settled[k]) continue;
      const double re = s.root_re[k], im = s.root_im[k];
      const Value v = evaluate(s, re, im);
      const Complex128 crowd = repulsion(s, re, im, 0, k) + repulsion(s, re, im, k + 1, n);
      const Complex128 step = 1.0 / (v.log_derivative + v.derivative / v.f - crowd);
      const bool noise = std::abs(v.f) <= 4 * unit * v.magnitude;
      if (finite(step)) s.root_re[k] -= step.real(), s.root_im[k] -= step.imag();
      if (noise || (finite(step) && std::abs(step) <= unit * std::hypot(re, im))) settled[k] = 1, --left;
    }
  }
  return sweep;
}

// An upper bound of |W_k|. Differences of doubles are exact to one rounding each, so the products are nearly
// exact; only f itself loses digits, and its error bound is added.
double weierstrass_bound(const Secular& s, int64_t k, const Value& v) {
  const int64_t n = s.size();
  const double re = s.root_re[k], im = s.root_im[k];
  double product = 1, scale = 0;  // |Π(z − Λ)/Π(z − z_j)|² = product · exp(scale)
  for (int64_t j = 0; j < n; ++j) {
    const double px = re - s.pole_re[j], py = im - s.pole_im[j];
    product *= px * px + py * py;
    if (j != k) {
      const double rx = re - s.root_re[j], ry = im - s.root_im[j];
      product /= rx * rx + ry * ry;
    }
    if (!(product < 1e100 && product > 1e-100)) scale += std::log(product), product = 1;
  }
  const double ratio = std::sqrt(product) * std::exp(0.5 * scale);
  const double slack = 1 + 16 * unit * static_cast<double>(n) + 1e-12;
  return (std::abs(v.f) + v.error(n)) * ratio * slack;
}

// Radius of a disc about root k that holds exactly one root, or +inf. The roots are the eigenvalues of
// diag(z) − W 1ᵀ. Scaling row k by τ and column k by 1/τ, Gershgorin's discs are: k: centre z_k − W_k, radius
// τ(M−1)|W_k|; j ≠ k: centre z_j − W_j, radius (M−2)|W_j| + |W_j|/τ. With τ = max 2|W_j|/|z_k − z_j| the last
// term is at most half the distance; disc k is alone when the other terms fit into the other half.
double isolated_radius(const Secular& s, const std::vector<double>& w, int64_t k) {
  const int64_t n = s.size();
  auto distance = [&](int64_t j) {
    return std::hypot(s.root_re[k] - s.root_re[j], s.root_im[k] - s.root_im[j]);
  };
  double tau = 0;
  for (int64_t j = 0; j < n; ++j)
    if (j != k) tau = std::max(tau, 2 * w[j] / distance(j));
  const double m = static_cast<double>(n), radius = w[k] * (1 + tau * (m - 1)) * (1 + 8 * unit);
  for (int64_t j = 0; j < n; ++j)
    if (j != k && !(distance(j) * (0.5 - 16 * unit) > radius + m * w[j])) return INFINITY;
  return std::isfinite(radius) ? radius : INFINITY;
}

}  // namespace

SecularResult secular_eigenvalues(std::span<const Complex128> lambda, std::span<const Complex128> p) {
  if (lambda.empty() || lambda.size() != p.size())
    fail(fmt::format(
        "secular_eigenvalues: lambda, p: expected the same number of values, at least one, found {} and {}",
        lambda.size(), p.size()));
  for (size_t n = 0; n < lambda.size(); ++n)
    if (!finite(lambda[n]) || !finite(p[n]))
      fail(fmt::format("secular_eigenvalues: lambda, p: expected finite values, found otherwise at state {}",
                       n));
  SecularResult result;
  Secular s;
  // Equal poles merge into one with their weights added; each merger, and each P_n = 0, leaves Λ_n as an
  // exact eigenvalue whose left and right vectors coincide.
  std::vector<size_t> order(lambda.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return std::pair(lambda[a].real(), lambda[a].imag()) < std::pair(lambda[b].real(), lambda[b].imag());
  });
  for (size_t n : order) {
    const double weight = std::norm(p[n]);
    const bool again =
        s.size() > 0 && s.pole_re.back() == lambda[n].real() && s.pole_im.back() == lambda[n].imag();
    if (weight > 0 && !again) {
      s.pole_re.push_back(lambda[n].real()), s.pole_im.push_back(lambda[n].imag()),
          s.weight.push_back(weight);
      continue;
    }
    if (weight > 0) s.weight.back() += weight;
    result.values.push_back(lambda[n]);
    result.radii.push_back(0), result.residuals.push_back(0), result.conditions.push_back(1);
  }
  const double norm_p = std::sqrt(std::accumulate(s.weight.begin(), s.weight.end(), 0.0));
  // Start from the diagonal of A, each turned by a different small angle so that no two start equal.
  for (int64_t n = 0; n < s.size(); ++n) {
    const double turn = 1e-3 * s.weight[n] * std::cos(1.0 + 2.4 * static_cast<double>(n));
    s.root_re.push_back(s.pole_re[n] - s.weight[n]), s.root_im.push_back(s.pole_im[n] + turn);
  }
  result.iterations = iterate(s);
  std::vector<double> w(s.size());
  for (int64_t k = 0; k < s.size(); ++k) {
    const Value v = evaluate(s, s.root_re[k], s.root_im[k]);
    w[k] = weierstrass_bound(s, k, v);
    result.values.emplace_back(s.root_re[k], s.root_im[k]);
    result.residuals.push_back(norm_p * std::abs(v.f) / std::sqrt(v.squares));
    result.conditions.push_back(worse(1.0, v.squares / std::abs(v.derivative)));
  }
  result.certified = true;
  for (int64_t k = 0; k < s.size(); ++k) {
    result.radii.push_back(isolated_radius(s, w, k));
    result.certified = result.certified && std::isfinite(result.radii.back());
  }
  return result;
}

}  // namespace eigentrace
