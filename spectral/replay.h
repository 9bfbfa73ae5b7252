#pragma once
// Replay: simulate a Realisation step by step in float64 and compare with what the layer computed. Nothing
// but Λ, B, C, D is used, so agreement proves that the eigenvalues read are those of the layer.
#include <cstdint>
#include <string>
#include <vector>

#include "spectral/realisation.h"

namespace eigentrace {

struct ReplayOptions {
  int64_t max_sequences = 0;  ///< the first so many sequences of the batch; 0: all
  /// S4: so many channels, evenly spread. Each costs O(N³ log L) for C̄; 0: as many as take about half a
  /// minute, at least 16.
  int64_t max_channels = 0;
};

/// One head, or the whole layer where there are no heads.
struct ReplayPart {
  double y_norm = 0;          ///< ‖y‖ over batch, time and width
  double error_norm = 0;      ///< ‖y_sim − y‖
  double relative_error = 0;  ///< error_norm / y_norm; 0 for a dead branch; NaN or inf: y or y_sim is broken
  /// Both y and y_sim are 0, or so small (below min/ε of y's type) that no digit is left to compare: the
  /// branch carries no signal (norm attention whose factor exp(−f) underflows).
  bool dead = false;
};

struct ReplayResult {
  ReplayPart layer;
  std::vector<ReplayPart> heads;        ///< [H]; one for systems without heads
  int64_t sequences = 0, channels = 0;  ///< what was simulated (channels: S4 only)
  double condition = 0;  ///< S4: largest condition number of I − Ā^length, which bounds what C̄ can be worth
  /// True iff every branch that is not dead agrees to `tolerance`.
  bool agrees(double tolerance) const;
  /// "head 2: dead branch", "relative error 3.1e-12"
  std::string text() const;
};

/// y: the mixer's output before gates and output projection, with as many elements as u, in its order.
///
/// The state is kept as mantissa × exp(log-scale): with state_normalised attention it moves over hundreds of
/// orders of magnitude as η does. Sums of log λ are carried in double-double, so that a long product
/// telescopes as the exact ratio would. An infinite log η (f overflowed) counts as 1e300. Softmax: y_i =
/// Σ_j (Π λ)(κ_ij/η_j) v_j row by row. Memory: one sequence in double and one state per thread.
/// Errors: those of check(); y of another size.
ReplayResult replay(const Realisation& system, const Tensor& y, const ReplayOptions& options = {});

}  // namespace eigentrace
