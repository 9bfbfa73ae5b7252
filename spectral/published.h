#pragma once
// The published analysis' reading, as pure functions of what it reads: the study's figures come from these
// formulas, which differ from the exact ones. Which activations enter (layer l's projections of block l's
// output, no LayerNorm, no convolution) is the caller's affair. T is the precision the study computed in
// (float; double for fixtures). All return log|λ|, never λ; a λ that T cannot hold is returned as it was
// there: −inf for 0, +inf or NaN as such.
#include <complex>
#include <cstdint>
#include <span>
#include <vector>

namespace eigentrace {

/// Softmax, one row: log η_i of s_ij = q_i·k_j (not divided by √d), j ≤ i; η_i = Σ_{j≤i} e^{s_ij} +
/// (T−1−i)e^{m_i}, m_i = max(max_j s_ij, 0) for i < T−1, the true maximum for the last row: every masked
/// entry counts as e^{m_i}. scores: the row's, at least row + 1 of them. Exponentials and sums in double.
template <class T>
double published_softmax_log_eta(std::span<const T> scores, int64_t row, int64_t steps);

/// Linear attention, one row: log η_i, η_i = Σ_{j≤i} φ(q_i)·φ(k_j), summed in double; η_i = 0 becomes 2e-23.
template <class T>
double published_linear_log_eta(std::span<const T> scores, int64_t row);

/// log λ_i = log η_{i−1} − log η_i, i = 1..T−1. log_eta: [T], all rows of one sequence and head.
std::vector<double> published_ratios(std::span<const double> log_eta);

enum class PublishedNormFunction { exp, elu, softplus, sigmoid };

/// Norm attention, one sequence and head: ν_i = exp(−f(n_i + o)) in T, 0 becomes 2e-23; log λ_i = log ν_i −
/// log ν_{i−1}, i = 1..T−1. n: [T].
template <class T>
std::vector<double> published_norm(std::span<const T> n, T offset, PublishedNormFunction f);

/// Mamba-2, one sequence and head: λ_i = exp(Δ_i A) in T, Δ_i = softplus(dt_i + dt_bias), A = −exp(A_log).
/// dt: [T].
template <class T>
std::vector<double> published_mamba2(std::span<const T> dt, T dt_bias, T a_log);

/// Pseudo-LTI Mamba-2, one head: λ = exp(−softplus(A)) in T, the same at each of `steps` steps.
template <class T>
std::vector<double> published_pseudo_lti(T a, int64_t steps);

struct PublishedEigenvalues {
  std::vector<double> log_abs, arg;  ///< [N], arg in (−π, π]
};

/// S5: λ = exp(ΛΔ) with Λ unclipped, whatever the discretisation. lambda, log_step: [N].
PublishedEigenvalues published_s5(std::span<const std::complex<double>> lambda,
                                  std::span<const double> log_step);

/// S4: the eigenvalues of one channel's dense Ā (channel 1, counted from 0), matrix and eigenproblem in T
/// (LAPACK cgeev, zgeev), in LAPACK's order. lambda: [N], Re clipped by the caller; p: [N].
template <class T>
PublishedEigenvalues published_s4(std::span<const std::complex<T>> lambda, std::span<const std::complex<T>> p,
                                  T step);

/// The one channel the published analysis reads.
inline constexpr int64_t published_s4_channel = 1;

}  // namespace eigentrace
