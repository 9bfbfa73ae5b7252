#pragma once
// Dense eigenproblems through LAPACK, each eigenvalue with the numbers that say how far it can be trusted.
// Matrices are row-major. All functions may be called from several threads at once; each call uses one
// thread.
#include <complex>
#include <cstdint>
#include <span>
#include <vector>

namespace eigentrace {

using Complex128 = std::complex<double>;

enum class EigenDetail {
  values,   ///< eigenvalues alone (about a third of the work); no residuals, conditions or bounds
  bounds,   ///< eigenvalues with residuals, conditions and error bounds
  vectors,  ///< the vectors as well
};

/// A v_k = λ_k v_k, y_kᴴ A = λ_k y_kᴴ, ‖v_k‖ = ‖y_k‖ = 1, sorted by (angle in (−π, π], radius).
struct EigenResult {
  int64_t n = 0;
  double norm = 0;  ///< ‖A‖₁
  std::vector<Complex128> values;
  std::vector<double>
      residuals;  ///< ‖A v − λ v‖₁/(n ε ‖A‖₁ ‖v‖₁), ε = 2⁻⁵²; below 30 is right in LAPACK's manner
  std::vector<double> conditions;       ///< 1/|yᴴ v| ≥ 1: first-order growth of a perturbation of A
  std::vector<double> error_bounds;     ///< first order: condition · (‖A v − λ v‖₂ + ε ‖A‖_F)
  std::vector<Complex128> right, left;  ///< [n, n], row k = v_k, y_k
  double max_residual() const;
  double max_condition() const;
};

/// Eigenvalues of a general matrix [n, n]: LAPACK zgeev (balanced, scaled and rotated inside; its vectors are
/// of the matrix given, so the conditions are too). Errors: sizes, non-finite entries, QR that does not
/// converge (info > 0).
EigenResult eigen_general(int64_t n, std::span<const Complex128> a, EigenDetail detail = EigenDetail::bounds);

/// The same for a real matrix: LAPACK dgeev; complex eigenvalues come as exact conjugate pairs.
EigenResult eigen_general(int64_t n, std::span<const double> a, EigenDetail detail = EigenDetail::bounds);

/// Hermitian: real eigenvalues, ascending, and a unitary matrix of eigenvectors.
struct HermitianResult {
  int64_t n = 0;
  std::vector<double> values;
  std::vector<Complex128> vectors;  ///< [n, n], column k belongs to values[k]; each column up to a unit phase
  double residual = 0;              ///< max over k of ‖A v − λ v‖₁/(n ε ‖A‖₁ ‖v‖₁)
};

/// Eigenvalues and vectors of a Hermitian matrix [n, n] (LAPACK zheevd, lower triangle read).
HermitianResult eigen_hermitian(int64_t n, std::span<const Complex128> a);

/// OpenBLAS takes one thread a call from now on: problems run side by side instead, and one thread gives the
/// same bits every time. Every function of this room that calls BLAS or LAPACK says so first.
void use_one_blas_thread();

/// Angle in (−π, π]: std::arg, with −π (a negative zero imaginary part) taken as π.
double angle_of(Complex128 z);

/// Permutation that sorts by (angle, radius), both ascending, ties in the order given.
std::vector<int64_t> order_by_angle(std::span<const Complex128> values);

}  // namespace eigentrace
