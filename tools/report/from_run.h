#pragma once
// From what a run left on disk to what a report shows.
#include <string>
#include <vector>

#include "spectral/reading.h"
#include "tools/correlate.h"
#include "tools/report/data.h"
#include "tools/run_folder.h"

namespace eigentrace {

/// One layer's spectrum at one moment of training: a SpectrumReport a head (one for the layer if it has none,
/// or if each head has a single fixed eigenvalue), with bins and statistics over all eigenvalues and a sample
/// of 400 to draw.
std::vector<SpectrumReport> spectrum_reports(const LayerSpectrum& spectrum, const std::string& stage,
                                             int64_t step = -1);

/// Correlations to be shown: those of rho with a p-value, the smallest p first, then the largest |rho|.
std::vector<CorrelationReport> correlation_reports(const CorrelationTable& table);

/// Everything in a run's folder: configuration, metrics, interventions.json, and each spectrum_STAGE.npz
/// (stages initial, trained, stepN).
RunReport run_report(const RunFolder& folder);

}  // namespace eigentrace
