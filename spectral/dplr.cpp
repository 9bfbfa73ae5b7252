#include <complex>
#define lapack_complex_float std::complex<float>
#define lapack_complex_double std::complex<double>
#include "spectral/dplr.h"

#include <cblas.h>
#include <fmt/format.h>
#include <lapacke.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <exception>
#include <limits>
#include <mutex>
#include <numeric>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "spectral/eigen.h"
#include "spectral/secular.h"
#include "tensor/error.h"
#include "tensor/worse.h"

namespace eigentrace {
namespace {

constexpr double eps = std::numeric_limits<double>::epsilon();

int64_t check_channel(const char* function, const DplrChannel& c) {
  if (c.lambda.empty() || c.lambda.size() != c.p.size())
    fail(fmt::format("{}: lambda, p: expected the same number of states, at least one, found {} and {}",
                     function, c.lambda.size(), c.p.size()));
  if (!(c.step > 0 && std::isfinite(c.step)))
    fail(
        fmt::format("{}: step: expected a positive number, found {}; it is exp(log_step)", function, c.step));
  for (size_t n = 0; n < c.lambda.size(); ++n) {
    const double sum = c.lambda[n].real() + c.lambda[n].imag() + c.p[n].real() + c.p[n].imag();
    if (!std::isfinite(sum))
      fail(fmt::format("{}: lambda, p: expected finite values, found {} + {}i and {} + {}i at state {}",
                       function, c.lambda[n].real(), c.lambda[n].imag(), c.p[n].real(), c.p[n].imag(), n));
  }
  return static_cast<int64_t>(c.lambda.size());
}

// E = 1/(2/Δ − Λ) and 1 + PᴴEP.
std::vector<Complex128> resolvent(const char* function, const DplrChannel& c, Complex128& denominator) {
  std::vector<Complex128> e(c.lambda.size());
  denominator = 1;
  for (size_t n = 0; n < e.size(); ++n) {
    const Complex128 gap = 2 / c.step - c.lambda[n];
    if (gap == 0.0)
      fail(fmt::format(
          "{}: lambda: state {} equals 2/Δ = {}, where the bilinear map has its pole; clip Re Λ below 0",
          function, n, 2 / c.step));
    e[n] = 1.0 / gap;
    denominator += std::norm(c.p[n]) * e[n];
  }
  if (denominator == 0.0)
    fail(fmt::format("{}: 2/Δ − A: expected an invertible matrix, found 1 + PᴴEP = 0; clip Re Λ below 0",
                     function));
  return e;
}

// ‖diag(Λ) − PPᴴ‖₁ in O(N).
double state_norm(const DplrChannel& c) {
  double sum = 0, norm = 0;
  for (const Complex128& p : c.p) sum += std::abs(p);
  for (size_t n = 0; n < c.p.size(); ++n) {
    const double p = std::abs(c.p[n]);
    norm = std::max(norm, std::abs(c.lambda[n] - p * p) + p * (sum - p));
  }
  return norm;
}

// Eigenvalues of A with bounds; what channels with equal Λ and P share.
struct StateEigenvalues {
  std::vector<Complex128> values;
  std::vector<double> residuals, conditions, bounds;
  bool certified = false;
};

StateEigenvalues state_eigenvalues(const DplrChannel& c, DplrRoute route) {
  const int64_t n = static_cast<int64_t>(c.lambda.size());
  if (route != DplrRoute::mapped) {
    SecularResult s = secular_eigenvalues(c.lambda, c.p);
    if (s.certified || route == DplrRoute::secular) {
      const double unit = static_cast<double>(n) * eps * state_norm(c);
      for (double& r : s.residuals) r = r == 0 ? 0 : r / unit;
      return {std::move(s.values), std::move(s.residuals), std::move(s.conditions), std::move(s.radii),
              s.certified};
    }
  }
  EigenResult r = eigen_general(n, dplr_state_matrix(c));
  return {std::move(r.values), std::move(r.residuals), std::move(r.conditions), std::move(r.error_bounds),
          false};
}

// |μ(z) − μ(λ)| for |z − λ| ≤ r: Δ r/(|1−Δλ/2| |1−Δz/2|) ≤ Δ r/(w (w − Δr/2)), w = |1 − Δλ/2|; and μ's own
// rounding.
double mapped_bound(Complex128 lambda, double step, double r) {
  const double w = std::abs(1.0 - 0.5 * step * lambda), rest = w - 0.5 * step * r;
  const double rounding = 8 * eps * (1 + std::abs(bilinear(lambda, step)));
  return rest > 0 ? step * r / (w * rest) * (1 + 8 * eps) + rounding
                  : std::numeric_limits<double>::infinity();
}

DplrEigenvalues map_eigenvalues(const StateEigenvalues& state, double step) {
  DplrEigenvalues out;
  std::vector<Complex128> images;
  for (const Complex128& lambda : state.values) images.push_back(bilinear(lambda, step));
  for (int64_t k : order_by_angle(images)) {
    out.values.push_back(images[k]);
    out.log_abs.push_back(log_bilinear_radius(state.values[k], step));
    out.arg.push_back(angle_of(images[k]));
    out.residuals.push_back(state.residuals[k]), out.conditions.push_back(state.conditions[k]);
    out.error_bounds.push_back(mapped_bound(state.values[k], step, state.bounds[k]));
  }
  out.certified = state.certified;
  return out;
}

DplrEigenvalues dense_eigenvalues(const DplrChannel& c) {
  EigenResult r = eigen_general(static_cast<int64_t>(c.lambda.size()), discretise(c).dense());
  // Unlike A, Ā is itself a computed matrix: a few roundings per entry, as seen by an eigenvalue.
  for (size_t k = 0; k < r.values.size(); ++k) r.error_bounds[k] += 8 * eps * r.conditions[k] * r.norm;
  DplrEigenvalues out;
  for (const Complex128& mu : r.values)
    out.log_abs.push_back(std::log(std::abs(mu))), out.arg.push_back(angle_of(mu));
  out.values = std::move(r.values), out.residuals = std::move(r.residuals);
  out.conditions = std::move(r.conditions), out.error_bounds = std::move(r.error_bounds);
  return out;
}

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

}  // namespace

std::vector<Complex128> clip_real(std::span<const Complex128> lambda, double limit) {
  std::vector<Complex128> out;
  for (const Complex128& l : lambda) out.emplace_back(std::min(l.real(), limit), l.imag());
  return out;
}

std::vector<Complex128> dplr_state_matrix(const DplrChannel& channel) {
  const int64_t n = static_cast<int64_t>(channel.lambda.size());
  std::vector<Complex128> a(n * n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) a[i * n + j] = -channel.p[i] * std::conj(channel.p[j]);
    a[i * n + i] = channel.lambda[i] - std::norm(channel.p[i]);
  }
  return a;
}

DiscreteDplr discretise(const DplrChannel& channel) {
  const int64_t n = check_channel("discretise", channel);
  Complex128 denominator;
  const std::vector<Complex128> e = resolvent("discretise", channel, denominator);
  DiscreteDplr d;
  d.diagonal.resize(n), d.column.resize(n), d.row.resize(n);
  for (int64_t k = 0; k < n; ++k) {
    d.diagonal[k] = (2 / channel.step + channel.lambda[k]) * e[k];
    d.column[k] = 4 / channel.step / denominator * e[k] * channel.p[k];
    d.row[k] = e[k] * std::conj(channel.p[k]);
  }
  return d;
}

std::vector<Complex128> DiscreteDplr::dense() const {
  const int64_t n = static_cast<int64_t>(diagonal.size());
  std::vector<Complex128> a(n * n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) a[i * n + j] = -column[i] * row[j];
    a[i * n + i] += diagonal[i];
  }
  return a;
}

void DiscreteDplr::apply(std::span<Complex128> x) const {
  Complex128 dot = 0;
  for (size_t n = 0; n < x.size(); ++n) dot += row[n] * x[n];
  for (size_t n = 0; n < x.size(); ++n) x[n] = diagonal[n] * x[n] - column[n] * dot;
}

std::vector<Complex128> discretise_input(const DplrChannel& channel, std::span<const Complex128> b) {
  const int64_t n = check_channel("discretise_input", channel);
  if (static_cast<int64_t>(b.size()) != n)
    fail(fmt::format("discretise_input: b: expected {} states like lambda, found {}", n, b.size()));
  Complex128 denominator, projection = 0;
  const std::vector<Complex128> e = resolvent("discretise_input", channel, denominator);
  for (int64_t k = 0; k < n; ++k) projection += std::conj(channel.p[k]) * e[k] * b[k];
  std::vector<Complex128> out(n);
  for (int64_t k = 0; k < n; ++k) out[k] = 2.0 * e[k] * (b[k] - channel.p[k] * (projection / denominator));
  return out;
}

Complex128 bilinear(Complex128 lambda, double step) {
  const Complex128 half = 0.5 * step * lambda;
  return (1.0 + half) / (1.0 - half);
}

double log_bilinear_radius(Complex128 lambda, double step) {
  const Complex128 half = 0.5 * step * lambda;
  // |1 + w|² − |1 − w|² = 4 Re w.
  const double change = 4 * half.real() / std::norm(1.0 - half);
  return change > -0.5 ? 0.5 * std::log1p(change)
                       : std::log(std::abs(1.0 + half)) - std::log(std::abs(1.0 - half));
}

DplrEigenvalues dplr_eigenvalues(const DplrChannel& channel, DplrRoute route) {
  check_channel("dplr_eigenvalues", channel);
  return route == DplrRoute::dense ? dense_eigenvalues(channel)
                                   : map_eigenvalues(state_eigenvalues(channel, route), channel.step);
}

std::vector<double> DplrSpectrum::log_abs() const {
  std::vector<double> out;
  for (const auto& s : spectra) out.insert(out.end(), s.log_abs.begin(), s.log_abs.end());
  return out;
}

std::vector<double> DplrSpectrum::arg() const {
  std::vector<double> out;
  for (const auto& s : spectra) out.insert(out.end(), s.arg.begin(), s.arg.end());
  return out;
}

DplrSpectrum dplr_spectrum(int64_t states, std::span<const Complex128> lambda, std::span<const Complex128> p,
                           std::span<const double> log_step, const DplrOptions& options) {
  const int64_t width = static_cast<int64_t>(log_step.size());
  if (states < 1 || width < 1 || static_cast<int64_t>(lambda.size()) != states * width ||
      p.size() != lambda.size())
    fail(fmt::format(
        "dplr_spectrum: lambda, p: expected [{}, {}] values (states, channels of log_step), found {} and {}",
        states, width, lambda.size(), p.size()));
  if (options.channels < 0 || options.channels > width)
    fail_usage(
        fmt::format("dplr_spectrum: channels: expected 0 (all) to {}, found {}", width, options.channels));
  const int64_t count = options.channels == 0 ? width : options.channels;
  DplrSpectrum result;
  result.states = states;
  result.spectra.resize(count);
  for (int64_t k = 0; k < count; ++k) result.channels.push_back(k * width / count);

  auto column = [&](std::span<const Complex128> matrix, int64_t channel) {
    std::vector<Complex128> out(states);
    for (int64_t n = 0; n < states; ++n) out[n] = matrix[n * width + channel];
    return out;
  };
  const std::vector<Complex128> first_lambda = column(lambda, 0), first_p = column(p, 0);
  const double begin = seconds();
  StateEigenvalues first;  // channel 0's, solved before the others so that equal ones can share it
  if (options.route != DplrRoute::dense) {
    check_channel("dplr_spectrum", {first_lambda, first_p, std::exp(log_step[0])});
    first = state_eigenvalues({first_lambda, first_p, 1.0}, options.route);
  }
  std::mutex mutex;
  std::exception_ptr error;
  int64_t done = 0;
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t k = 0; k < count; ++k) {
    try {
      const int64_t channel = result.channels[k];
      const std::vector<Complex128> l = column(lambda, channel), low_rank = column(p, channel);
      const DplrChannel one{l, low_rank, std::exp(log_step[channel])};
      check_channel("dplr_spectrum", one);
      const bool shared = options.route != DplrRoute::dense && l == first_lambda && low_rank == first_p;
      result.spectra[k] = shared ? map_eigenvalues(first, one.step) : dplr_eigenvalues(one, options.route);
      if (options.progress) {
        const std::scoped_lock lock(mutex);
        ++done;
        options.progress(done, count, (seconds() - begin) / done * (count - done));
      }
    } catch (...) {
      const std::scoped_lock lock(mutex);
      if (!error) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
  for (const DplrEigenvalues& s : result.spectra) {
    result.certified += s.certified;
    for (int64_t n = 0; n < states; ++n) {
      result.max_residual = worse(result.max_residual, s.residuals[n]);
      result.max_condition = worse(result.max_condition, s.conditions[n]);
      result.max_error_bound = worse(result.max_error_bound, s.error_bounds[n]);
    }
  }
  return result;
}

double estimated_seconds(int64_t states, int64_t channels, DplrRoute route) {
  if (states < 1 || channels < 1)
    fail(fmt::format("estimated_seconds: states, channels: expected at least 1 each, found {} and {}", states,
                     channels));
  // Poles and weights as HiPPO's, ω_k ≈ N²/(π(2k−1)), |P_k|² ≈ 0.64 ω_k/(2k−1), moved by a few per cent.
  const bool quadratic = route == DplrRoute::automatic || route == DplrRoute::secular;
  const int64_t n = std::min<int64_t>(states, quadratic ? 512 : 96);
  std::vector<Complex128> lambda, p;
  for (int64_t k = 0; k < n; ++k) {
    const int64_t pair = k / 2;
    const double odd = static_cast<double>(2 * pair + 1), omega = 0.318 * static_cast<double>(n * n) / odd;
    lambda.emplace_back(-0.5, (k % 2 == 0 ? 1 : -1) * omega * (1 + 0.05 * std::sin(1.0 + 2.4 * k)));
    p.emplace_back(std::sqrt(0.64 * omega / odd) * (1 + 0.05 * std::cos(3.1 * k)));
  }
  double best = std::numeric_limits<double>::infinity();
  for (int repeat = 0; repeat < 3; ++repeat) {
    const double begin = seconds();
    (void)dplr_eigenvalues({lambda, p, 0.01}, route);
    best = std::min(best, seconds() - begin);
  }
  const double rounds = std::ceil(static_cast<double>(channels) / threads());
  return best * std::pow(static_cast<double>(states) / static_cast<double>(n), quadratic ? 2 : 3) * rounds;
}

DplrRealisation dplr_realisation(const DplrChannel& channel, std::span<const Complex128> b,
                                 std::span<const Complex128> c, int64_t length) {
  const int64_t n = check_channel("dplr_realisation", channel);
  if (static_cast<int64_t>(c.size()) != n)
    fail(fmt::format("dplr_realisation: c: expected {} states like lambda, found {}", n, c.size()));
  if (length < 1) fail(fmt::format("dplr_realisation: length: expected at least 1 step, found {}", length));
  use_one_blas_thread();
  DplrRealisation r;
  r.a = discretise(channel);
  r.b = discretise_input(channel, b);
  // Ā^L by squaring.
  const Complex128 one(1), zero(0);
  auto product = [&](const std::vector<Complex128>& x, const std::vector<Complex128>& y) {
    std::vector<Complex128> out(n * n);
    cblas_zgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, n, n, n, &one, x.data(), n, y.data(), n, &zero,
                out.data(), n);
    return out;
  };
  std::vector<Complex128> square = r.a.dense(), power;
  for (int64_t left = length;;) {
    if (left & 1) power = power.empty() ? square : product(power, square);
    if ((left >>= 1) == 0) break;
    square = product(square, square);
  }
  // C̄ (I − Ā^L) = conj(C): a row-major matrix read column-major is its transpose, which is the system to
  // solve.
  double norm = 0;  // ‖·‖₁ of the transpose: the largest row sum
  for (int64_t i = 0; i < n; ++i) {
    double row = 0;
    for (int64_t j = 0; j < n; ++j) {
      power[i * n + j] = (i == j ? 1.0 : 0.0) - power[i * n + j];
      row += std::abs(power[i * n + j]);
    }
    norm = std::max(norm, row);
  }
  for (const Complex128& x : c) r.c.push_back(std::conj(x));
  std::vector<lapack_int> pivots(n);
  double reciprocal = 0;
  lapack_int info = LAPACKE_zgetrf(LAPACK_COL_MAJOR, n, n, power.data(), n, pivots.data());
  if (info == 0) info = LAPACKE_zgecon(LAPACK_COL_MAJOR, '1', n, power.data(), n, norm, &reciprocal);
  if (info != 0 || !(reciprocal > eps))
    fail(
        fmt::format("dplr_realisation: I − Ā^L: expected an invertible matrix, found one with reciprocal "
                    "condition {:.1e} "
                    "(L = {}); |λ| is too close to 1 for a truncated read-out",
                    reciprocal, length));
  r.condition = 1 / reciprocal;
  info = LAPACKE_zgetrs(LAPACK_COL_MAJOR, 'N', n, 1, power.data(), n, pivots.data(), r.c.data(), n);
  if (info != 0) fail(fmt::format("dplr_realisation: LAPACK zgetrs failed with info = {}", info));
  return r;
}

std::vector<double> dplr_kernel(const DplrRealisation& realisation, int64_t length) {
  if (length < 1) fail(fmt::format("dplr_kernel: length: expected at least 1 step, found {}", length));
  std::vector<Complex128> x = realisation.b;
  std::vector<double> kernel(length);
  for (double& value : kernel) {
    Complex128 sum = 0;
    for (size_t n = 0; n < x.size(); ++n) sum += realisation.c[n] * x[n];
    value = sum.real();
    realisation.a.apply(x);
  }
  return kernel;
}

}  // namespace eigentrace
