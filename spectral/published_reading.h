#pragma once
// The published analysis' reading of a layer. What enters is not what the layer computed: layer l's
// projections of block l's OUTPUT, without LayerNorm and convolution. The caller makes a Realisation of
// those terms; the formulas are published.h's.
#include <complex>
#include <optional>
#include <vector>

#include "spectral/reading.h"

namespace eigentrace {

/// Transformer and Mamba-2 from the Realisation of the published terms, in its element type; LRU as the
/// exact reading; S4: channel 1 alone; Mamba-1 and S5 (whose Λ and Δ a Realisation does not hold): none. q·k
/// unscaled; pseudo-LTI is repeated over batch and time: [B,T,H]. Errors: check()'s; S4 of one channel.
std::optional<LayerSpectrum> read_published(const Realisation& system, int64_t layer);

/// S5: exp(ΛΔ), Λ unclipped, whatever the discretisation. lambda complex [N] as stored, log_step N elements.
LayerSpectrum read_published_s5(const ComplexTensor& lambda, const Tensor& log_step, int64_t layer);

/// How far the published reading of a layer is from the exact one. |λ| unless said otherwise.
struct ReadingComparison {
  int64_t layer = 0;
  int64_t count = 0;       ///< pairs of eigenvalues of the same step and head (S4: nearest in the plane)
  int64_t non_finite = 0;  ///< pairs left out because one of the two is not a finite number
  double mean_difference = 0, median_difference = 0;  ///< |λ_published − λ_exact|
  double mean_log_difference = 0;  ///< |log|λ_published| − log|λ_exact||, over pairs without a zero
  double exact_mean = 0, exact_std = 0, published_mean = 0, published_std = 0;
  /// Percent per bin of radius_edges: the exact reading, the published one in the same half-open bins, and
  /// the published one as published (both ends closed: |λ| = 1 twice).
  std::vector<double> exact_percent, published_percent, published_as_published;
};

/// Errors: two spectra of different layers, or of shapes that do not go together.
ReadingComparison compare_readings(const LayerSpectrum& exact, const LayerSpectrum& published);

}  // namespace eigentrace
