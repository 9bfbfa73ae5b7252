#pragma once
// Across runs: every statistic of the spectra against how well the runs did, means over seeds, initial
// against trained.
#include <string>
#include <vector>

#include "spectral/correlation.h"
#include "tools/run_folder.h"

namespace eigentrace {

inline constexpr const char* correlations_format = "eigentrace-correlations/1";

struct CorrelateRequest {
  std::string figure = "accuracy";  ///< accuracy (MAD: macro accuracy) or loss, of the last evaluation
  int64_t permutations = 9999, resamples = 2000;
  double level = 0.95;
  uint64_t seed = 0;
  std::vector<std::string> statistics;  ///< only those whose name contains one of these; empty: all
};

/// A run as it enters. Runs whose configurations differ in nothing but seeds are one group.
struct CorrelatedRun {
  std::string name, path, family;
  uint64_t seed = 0;
  int64_t group = 0;
  double figure = 0;
};

struct RunGroup {
  std::string label;                 ///< family, then what else tells it from the other groups
  std::vector<std::string> differs;  ///< "train.lr: 0.001", keys that are not the same in all groups
  std::vector<int64_t> runs;
  MeanInterval figure;  ///< over seeds
};

/// A statistic of one stage and layer over the runs. layer −1: mean over the layers. Stage: initial, trained,
/// or change (trained − initial).
struct StatisticCorrelation {
  std::string stage, statistic;
  int64_t layer = -1;
  RankCorrelation correlation;
  RhoInterval interval;        ///< of rho, runs resampled
  double q_value = 0;          ///< false discovery rate over all statistics and layers of the stage
  std::vector<double> values;  ///< per run; NaN: not there, or not finite
};

/// A statistic of a group: initial and trained with intervals over seeds, and their paired difference.
struct StatisticChange {
  int64_t group = 0, layer = -1;
  std::string statistic;
  MeanInterval initial, trained;
  PairedChange change;
};

struct CorrelationTable {
  CorrelateRequest request;
  std::vector<CorrelatedRun> runs;
  std::vector<RunGroup> groups;
  std::vector<StatisticCorrelation> correlations;
  std::vector<StatisticChange> changes;
};

/// Reads run.json, config.yaml, metrics.jsonl and spectrum_{initial,trained}.npz (exact readings) of each
/// folder. Errors: fewer than two runs with an evaluation and a spectrum; folders that are none.
CorrelationTable correlate_runs(const std::vector<RunFolder>& folders, const CorrelateRequest& request);

std::string correlations_json(const CorrelationTable& table);
/// Back from a file. Error: not such a file.
CorrelationTable read_correlations(const std::string& path);
/// The strongest `rows` correlations of a stage, then the groups.
std::string correlations_text(const CorrelationTable& table, const std::string& stage, size_t rows = 20);

}  // namespace eigentrace
