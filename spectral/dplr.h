#pragma once
// S4 channels (arXiv 2111.00396): A = diag(Λ) − PPᴴ, its bilinear discretisation Ā, and what a reading or a
// replay needs.
#include <complex>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace eigentrace {

/// One channel. lambda, p: [N]; step Δ > 0. Clip Re Λ beforehand (clip_real).
struct DplrChannel {
  std::span<const std::complex<double>> lambda, p;
  double step = 0;
};

/// min(Re Λ, limit) + i Im Λ.
std::vector<std::complex<double>> clip_real(std::span<const std::complex<double>> lambda,
                                            double limit = -1e-4);

/// A = diag(Λ) − PPᴴ, [N, N].
std::vector<std::complex<double>> dplr_state_matrix(const DplrChannel& channel);

/// Ā = (2/Δ − Λ + PPᴴ)⁻¹(2/Δ + Λ − PPᴴ) as diag(d) − c rᵀ (Woodbury): d = (2/Δ + Λ)/(2/Δ − Λ),
/// c = (4/Δ)/(1 + PᴴEP)·EP, r = E·conj(P), E = 1/(2/Δ − Λ). Errors: Δ not positive; 2/Δ = Λ_n.
struct DiscreteDplr {
  std::vector<std::complex<double>> diagonal, column, row;  ///< d, c, r: [N]
  std::vector<std::complex<double>> dense() const;          ///< Ā, [N, N]
  void apply(std::span<std::complex<double>> x) const;      ///< x ← Ā x in O(N)
};
DiscreteDplr discretise(const DplrChannel& channel);

/// B̄ = 2(2/Δ − Λ + PPᴴ)⁻¹ B, [N], in O(N).
std::vector<std::complex<double>> discretise_input(const DplrChannel& channel,
                                                   std::span<const std::complex<double>> b);

/// μ = (1 + Δλ/2)/(1 − Δλ/2).
std::complex<double> bilinear(std::complex<double> lambda, double step);
/// log|μ|, without forming |μ|: exact near the unit circle. −inf where μ = 0.
double log_bilinear_radius(std::complex<double> lambda, double step);

/// How Ā's eigenvalues are found.
enum class DplrRoute {
  automatic,  ///< secular, and mapped for a channel whose roots could not be certified
  secular,  ///< roots of 1 + Σ|P_n|²/(λ − Λ_n) in O(N²), mapped; an uncertified root has the error bound +inf
  mapped,  ///< zgeev of A, each eigenvalue through the bilinear map
  dense,   ///< zgeev of Ā
};

/// Eigenvalues of one channel's Ā, sorted by (angle in (−π, π], radius).
struct DplrEigenvalues {
  std::vector<std::complex<double>> values;  ///< [N]
  std::vector<double> log_abs, arg;          ///< log|μ|, arg μ in (−π, π]
  std::vector<double> residuals;             ///< as EigenResult::residuals, of A (dense: of Ā)
  std::vector<double> conditions;            ///< 1/|yᴴv|: A and Ā have the same eigenvectors
  std::vector<double> error_bounds;          ///< of |μ|'s computed value against exact arithmetic
  bool certified = false;  ///< the bounds are inclusion discs; false: first-order, and worth nothing where
                           ///< they are as large as the distance to the next eigenvalue
};
DplrEigenvalues dplr_eigenvalues(const DplrChannel& channel, DplrRoute route = DplrRoute::automatic);

struct DplrOptions {
  DplrRoute route = DplrRoute::automatic;
  int64_t channels = 0;  ///< how many channels to read, evenly spread; 0: all
  /// Called (one call at a time, from any thread) after each channel: done, total, estimated seconds left.
  std::function<void(int64_t done, int64_t total, double seconds_left)> progress;
};

struct DplrSpectrum {
  int64_t states = 0;
  std::vector<int64_t> channels;         ///< which channels were read
  std::vector<DplrEigenvalues> spectra;  ///< one per channel read
  int64_t certified = 0;                 ///< channels whose bounds are inclusion discs
  double max_residual = 0, max_condition = 0, max_error_bound = 0;
  std::vector<double> log_abs() const, arg() const;  ///< [channels read, N]
};

/// Ā's eigenvalues of the channels of a layer, in parallel over channels, one thread each; the same bits for
/// any number of threads. lambda, p: [N, D] (channel last, as the parameters are stored), log_step: [D].
/// Channels with the Λ and P of channel 0, as at initialisation, share its eigenproblem. Errors: sizes,
/// non-finite values.
DplrSpectrum dplr_spectrum(int64_t states, std::span<const std::complex<double>> lambda,
                           std::span<const std::complex<double>> p, std::span<const double> log_step,
                           const DplrOptions& options = {});

/// Wall seconds dplr_spectrum will take for `channels` channels of N states on this machine, from one timed
/// problem of at most 96 states scaled by N³ (secular: N²). Meant within a factor of two.
double estimated_seconds(int64_t states, int64_t channels, DplrRoute route);

/// The recurrence equivalent to S4's convolution: h_i = Ā h_{i−1} + B̄ u_i, y_i = Re(C̄ h_i) + D u_i,
/// C̄ = conj(C)(I − Ā^L)⁻¹, so that K_l = Re(C̄ Ā^l B̄).
struct DplrRealisation {
  DiscreteDplr a;
  std::vector<std::complex<double>> b, c;  ///< B̄, C̄: [N]
  double condition = 0;  ///< estimate of κ₁(I − Ā^L): digits lost in C̄ are about its logarithm
};

/// b, c: [N] (C = C_re + i C_im as stored, not conjugated); length L ≥ 1. O(N³ log L).
/// Errors: sizes; I − Ā^L singular to working precision.
DplrRealisation dplr_realisation(const DplrChannel& channel, std::span<const std::complex<double>> b,
                                 std::span<const std::complex<double>> c, int64_t length);

/// K_l = Re(C̄ Ā^l B̄), l = 0..length−1, in O(length · N).
std::vector<double> dplr_kernel(const DplrRealisation& realisation, int64_t length);

}  // namespace eigentrace
