#pragma once
// Eigenvalues of a diagonal matrix minus a rank-one one, in O(N²), each with a certified inclusion disc.
#include <complex>
#include <cstdint>
#include <span>
#include <vector>

namespace eigentrace {

/// Eigenvalues of A = diag(Λ) − PPᴴ: the roots of f(λ) = 1 + Σ_n |P_n|²/(λ − Λ_n), and Λ_n itself where P_n =
/// 0 or Λ_n occurs again.
struct SecularResult {
  std::vector<std::complex<double>> values;  ///< [N], in no particular order
  /// The disc |λ − values[k]| ≤ radii[k] holds exactly one eigenvalue of the A given, rounding included; +inf
  /// where that could not be shown.
  std::vector<double> radii;
  std::vector<double> residuals;   ///< ‖A v − λ v‖₂/‖v‖₂ of v = (λ − Λ)⁻¹P
  std::vector<double> conditions;  ///< 1/|yᴴ v| of the normalised vectors
  bool certified = false;          ///< every disc is finite, so the values are all the eigenvalues
  int64_t iterations = 0;
};

/// Ehrlich–Aberth iteration on all roots at once, then a bound per root: with the Weierstrass corrections
/// W_k = f(z_k) Π_n(z_k − Λ_n)/Π_{j≠k}(z_k − z_j) the roots are the eigenvalues of diag(z) − W 1ᵀ, and
/// Gershgorin's discs hold them (B. T. Smith, J. ACM 17, 1970; L. Elsner, Numer. Math. 20, 1973). Λ, P: [N].
/// Errors: different sizes, none, non-finite values.
SecularResult secular_eigenvalues(std::span<const std::complex<double>> lambda,
                                  std::span<const std::complex<double>> p);

}  // namespace eigentrace
