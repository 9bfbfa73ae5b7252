#pragma once
// HiPPO-LegS in diagonal-plus-low-rank form (S4, arXiv 2111.00396; S5, arXiv 2208.04933): the initial Λ, P,
// B.
#include <complex>
#include <cstdint>
#include <span>
#include <vector>

namespace eigentrace {

/// p_n = √(n+½), b_n = √(2n+1), A_nk = −√(2n+1)√(2k+1) (n > k), −(n+1) (n = k), 0 (n < k), n = 0..N−1;
/// A + ppᵀ = −½I + K, K skew; Λ = −½ + i·eigenvalues of the Hermitian −iK, ascending; V its eigenvectors;
/// P = V*p, B = V*b; so A = V (diag(Λ) − PP*) V*.
/// Phase of the eigenvectors: component 0 of each column of V is real and positive (LAPACK leaves it real
/// with either sign, so this is the published initialiser up to a sign per state, which the random C
/// absorbs).
struct HippoDplr {
  int64_t n = 0;
  std::vector<std::complex<double>> lambda, p, b;  ///< [N]
  std::vector<std::complex<double>> v;             ///< [N, N], column k belongs to lambda[k]
};

/// Errors: n < 1.
HippoDplr hippo_dplr(int64_t n);

/// The matrix A itself, [N, N] row-major, real.
std::vector<double> hippo_legs(int64_t n);

/// S5's initial state matrix: `num_blocks` equal HiPPO blocks of n = state_dim/num_blocks; with conj_sym the
/// first n/2 of each (Im Λ < 0), each standing for a conjugate pair. V = blockdiag of the kept columns,
/// [state_dim, N].
struct HippoBlocks {
  int64_t state_dim = 0, num_blocks = 0, block = 0, kept = 0;  ///< block = n; kept columns of each block
  std::vector<std::complex<double>> lambda;  ///< [N], N = num_blocks·kept, tiled over the blocks
  std::vector<std::complex<double>> v;       ///< [block, kept], the same in every block
  int64_t states() const { return num_blocks * kept; }
  /// V* B₀: real [state_dim, columns] → complex [N, columns].
  std::vector<std::complex<double>> adjoint_times(std::span<const double> b, int64_t columns) const;
  /// C₀ V: complex [rows, state_dim] → complex [rows, N].
  std::vector<std::complex<double>> times(std::span<const std::complex<double>> c, int64_t rows) const;
};

/// Errors: num_blocks does not divide state_dim; conj_sym with an odd block.
HippoBlocks hippo_blocks(int64_t state_dim, int64_t num_blocks, bool conj_sym);

}  // namespace eigentrace
