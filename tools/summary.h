#pragma once
// The essential tables of runs and sweeps, for the terminal and as JSON.
#include <optional>
#include <string>
#include <vector>

#include "tools/sweep_store.h"

namespace eigentrace {

/// Mean and sample standard deviation (over n − 1) of the numbers that are known.
struct Spread {
  int64_t n = 0;
  double mean = 0, std = 0;  ///< NaN for n = 0; std for n = 1
};
Spread spread_of(const std::vector<double>& values);

/// What a reader wants of a spectrum first.
struct SpectrumEssentials {
  int64_t layer = -1;           ///< −1: mean over layers
  std::vector<double> percent;  ///< of |λ|, per bin of radius_edges
  double median = 0;            ///< of |λ|
  double expanding = 0;         ///< % of |λ| > 1
};
/// Of each layer, from RUN/spectrum_STAGE.json; empty where the run has no such file. Error: not such a file.
std::vector<SpectrumEssentials> spectrum_essentials(const std::string& run, const std::string& stage);
/// Mean over layers or runs, number by number; those that are not finite are left out.
SpectrumEssentials mean_of(const std::vector<SpectrumEssentials>& parts);

/// Finished points that differ in nothing but the seed.
struct SweepGroup {
  std::vector<SweepSetting> settings;  ///< without the seed
  std::vector<PointRecord> points;     ///< the finished ones
  Spread accuracy, loss, step, seconds;
  std::optional<SpectrumEssentials> initial, trained;  ///< mean over layers and points
};
/// By accuracy, best first; groups without a finished point last.
std::vector<SweepGroup> sweep_groups(const SweepStore& store);

/// A sweep's groups, their spectra, and the points that are not finished, on standard output.
void print_sweep(const SweepStore& store, bool json);

}  // namespace eigentrace
