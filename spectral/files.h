#pragma once
// Spectra on disk: NAME.npz (every eigenvalue and number, for NumPy) and NAME.json (a summary to read).
//
// In the .npz, layer l's arrays are called "layer{l}/…" ("published{l}/…" for the published reading):
//   log_abs, arg      f64, shaped as `kind` says: [B,T−1,H] attention, [B,T,H] Mamba-2, [H] pseudo-LTI, [N]
//                     LRU and S5, [D',N] S4, [B,T,M] Mamba-1
//   family, kind, reading, gauge   u8, text
//   first_step        i64: entry t of the time axis is λ_{first_step + t}
//   full_count        i64: eigenvalues the layer has; more than log_abs holds: a sample, counted in streamed/
//   channels, series  i64: S4's channels that were read; Mamba-1's series, channel·N + state
//   all/FIELD         one number or array of SpectrumStatistics (visit_fields), e.g. all/radius_percent.mean
//   heads/FIELD       the same for each head, [H, …]
// and beside them "format" (i64, below), "radius_edges", "phase_edges_degrees", "quantile_levels",
// "memory_lags", and "metadata": u8, the text of the JSON summary: json.loads(bytes(file["metadata"])).
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "spectral/published_reading.h"
#include "spectral/reading.h"
#include "spectral/replay.h"

namespace eigentrace {

inline constexpr int64_t spectrum_format = 1;

/// All there is to say about one layer.
struct LayerRecord {
  LayerSpectrum spectrum;
  LayerStatistics statistics;
  std::optional<ReplayResult> replay;           ///< if it was checked
  std::optional<LayerSpectrum> published;       ///< if it was read
  std::optional<ReadingComparison> comparison;  ///< of the two
};

struct SpectrumRecord {
  std::vector<std::pair<std::string, std::string>> about;  ///< model, stage, batch, version, …
  std::vector<LayerRecord> layers;
};

/// The summary: format, about, edges, and per layer what it is, its statistics, replay and comparison; no
/// eigenvalues. NaN and infinities become null.
std::string spectrum_json(const SpectrumRecord& record);

/// Both files, each atomically. path without extension.
void write_spectrum(const std::string& path, const SpectrumRecord& record);

/// The spectra of a .npz: exact ones, then published ones, by layer. Errors: not such a file, a format this
/// program does not read, arrays that are missing or do not fit.
std::vector<LayerSpectrum> read_spectra(const std::string& npz_path);

}  // namespace eigentrace
