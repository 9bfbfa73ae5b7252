#pragma once
// The exact reading: from a Realisation to the eigenvalues of one layer, in double, as log|λ| and arg λ with
// the time step each belongs to; and their statistics.
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "spectral/realisation.h"
#include "spectral/statistics.h"

namespace eigentrace {

/// How the eigenvalues of a layer are laid out.
enum class SpectrumKind : unsigned char {
  time_varying,       ///< [B,T',H]: attention (T' = T−1), Mamba-2 (T' = T)
  fixed,              ///< [N]: LRU, S5
  fixed_per_head,     ///< [H]: pseudo-LTI Mamba-2
  fixed_per_channel,  ///< [D',N], D' channels read: S4
  selective           ///< [B,T,M], M of the E·N series (channel, state), each whole: Mamba-1
};
const char* name_of(SpectrumKind kind);

/// Counts over every eigenvalue of a layer of which only a sample is kept.
struct StreamedCounts {
  int64_t count = 0, non_finite = 0, zeros = 0, unit = 0, expanding = 0;
  double log_spectral_radius = 0;                   ///< largest log|λ|
  std::vector<std::vector<double>> radius_percent;  ///< per sequence, the bins of radius_edges, half-open
};

struct LayerSpectrum {
  int64_t layer = 0;
  Family family = Family::softmax_attention;
  std::string reading = "exact";  ///< or "published"
  SpectrumKind kind = SpectrumKind::time_varying;
  Gauge gauge = Gauge::state_normalised;  ///< means something for attention only (has_gauge)
  bool has_gauge = false;
  std::vector<int64_t> shape;   ///< of log_abs, as `kind` says
  std::vector<double> log_abs;  ///< log|λ|; −inf: λ = 0; NaN: not known (η infinite twice)
  std::vector<double> arg;      ///< in (−π, π]; empty: every eigenvalue is real and positive
  int64_t first_step = 0;       ///< entry t of the time axis is λ_{first_step + t}: 1 for attention, else 0

  std::vector<int64_t> channels;  ///< fixed_per_channel: which channels were read
  std::vector<int64_t> series;    ///< selective: channel·N + state of each series kept
  int64_t full_count = 0;         ///< eigenvalues the layer has; more than log_abs holds: it is a sample
  StreamedCounts streamed;        ///< over all full_count; empty unless log_abs is a sample
  /// S4: largest LAPACK residual ‖Av−λv‖/(nε‖A‖) and condition 1/|yᴴv| over channels, NaN elsewhere; every
  /// channel's bound is an inclusion disc?
  double max_residual, max_condition, max_error_bound;
  bool certified = false;

  LayerSpectrum();
  bool sampled() const { return full_count > int64_t(log_abs.size()); }
  bool time_dependent() const {
    return kind == SpectrumKind::time_varying || kind == SpectrumKind::selective;
  }
  /// Heads the statistics tell apart; 0: none.
  int64_t heads() const {
    return kind == SpectrumKind::time_varying     ? shape[2]
           : kind == SpectrumKind::fixed_per_head ? shape[0]
                                                  : 0;
  }
};

struct ReadingOptions {
  int64_t max_values = int64_t(1) << 21;  ///< Mamba-1: eigenvalues kept of a layer (16 MiB)
  uint64_t seed = 0;                      ///< which series are kept
  int64_t channels = 0;                   ///< S4: channels read, evenly spread; 0: all
  /// S4, after each channel: done, total, estimated seconds left.
  std::function<void(int64_t, int64_t, double)> progress;
};

/// Eigenvalues of layer `layer`. Attention: log λ_i = log η_{i−1} − log η_i in double, i = 1..T−1 (gauge
/// readout_normalised: 0). Mamba-2, pseudo-LTI: log λ. LRU, S5: as given, arg into (−π, π]. S4: eigenvalues
/// of Ā_c, sorted by (angle, radius) per channel. Mamba-1: Δ_i[c] A[c,s], streamed over sequences: where the
/// layer has more than max_values, a seeded choice of whole series is kept and the bins, the shares and the
/// spectral radius are counted over all. Errors: check()'s; those of the eigensolver.
LayerSpectrum read_spectrum(const Realisation& system, int64_t layer, const ReadingOptions& options = {});
/// The same of Λ alone, which may be copies on the host of what the layer computed.
LayerSpectrum read_spectrum(const Lambda& lambda, int64_t layer, const ReadingOptions& options = {});

/// Statistics of a layer and of each of its heads. Sampled layers: `all`'s bins, counts, shares and spectral
/// radius are those of every eigenvalue, its moments, quantiles and horizons those of the series kept.
struct LayerStatistics {
  SpectrumStatistics all;
  std::vector<SpectrumStatistics> heads;  ///< [LayerSpectrum::heads()]
  bool sampled = false;
};
LayerStatistics layer_statistics(const LayerSpectrum& spectrum, Binning binning = Binning::exact);

/// A layer's spectrum with at most about `most` eigenvalues, for files of which there are many: the first
/// whole sequences of a time-varying one, evenly spread channels of S4 (at least one of either; the time step
/// of each stays known), with full_count and `streamed` telling of all. Other kinds, and Mamba-1, which is
/// sampled when read, are returned as they are.
LayerSpectrum thinned(const LayerSpectrum& spectrum, int64_t most);

/// `count` eigenvalues without repetition (all, if there are no more), in the order of log_abs: what a
/// picture shows. step −1, sequence −1, head −1: the layer has no such axis. The same seed gives the same
/// choice.
struct SpectrumSample {
  std::vector<double> log_abs, arg;
  std::vector<int64_t> sequence, step, head;  ///< head: for channels and series, their number
};
SpectrumSample sample_spectrum(const LayerSpectrum& spectrum, int64_t count, uint64_t seed = 0);

/// `count` of 0..n−1 without repetition, ascending, each subset equally likely (Floyd's algorithm).
std::vector<int64_t> choose(int64_t n, int64_t count, uint64_t seed);

}  // namespace eigentrace
