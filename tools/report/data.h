#pragma once
// What a report shows, as plain values: the tools that know runs fill it in, the report knows nothing of
// models.
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace eigentrace {

inline constexpr double not_recorded = std::numeric_limits<double>::quiet_NaN();

/// One line of a run's metrics; what was not recorded at this step is NaN.
struct MetricRow {
  int64_t step = 0;
  double train_loss = not_recorded, train_accuracy = not_recorded;  ///< accuracies 0…1
  double eval_loss = not_recorded, eval_accuracy = not_recorded;
  double steps_per_second = not_recorded;
  double eval_macro_accuracy = not_recorded;  ///< MAD: mean of its batches' accuracies
};

/// One eigenvalue of a sample.
struct EigenvalueSample {
  double log_abs = 0;  ///< log|λ|; −inf: λ = 0
  double arg = 0;      ///< radians
  int64_t time = 0;    ///< the time step it belongs to; 0 for time-invariant systems
};

/// Percentages per bin, mean and standard deviation over sequences.
struct BinReport {
  std::vector<double> edges;      ///< one more than bins; the last may be +inf
  std::vector<double> mean, std;  ///< std may be empty
};

/// The spectrum of one layer and head at one moment of training.
struct SpectrumReport {
  std::string stage;  ///< "initial" and "trained" are drawn side by side; others only along training
  int layer = 0;
  int head = -1;  ///< -1: the layer has no heads
  bool time_varying = true;
  std::vector<EigenvalueSample> eigenvalues;               ///< a sample; a few hundred are enough
  BinReport radius;                                        ///< of |λ|
  BinReport phase;                                         ///< of |arg λ| in degrees
  std::vector<std::pair<std::string, double>> statistics;  ///< name and value, in the order to be shown
  int64_t step = -1;    ///< of training; -1: not known. Three moments or more make a chart along training
  std::string reading;  ///< "" or "exact": what the layer computes; others get figures of their own
};

/// What a run does with its eigenvalues changed.
struct InterventionRow {
  std::string change;  ///< as written; the first row is the run as it was trained
  std::string path;
  double loss = not_recorded, accuracy = not_recorded;                ///< MAD: macro accuracy
  double loss_change = not_recorded, accuracy_change = not_recorded;  ///< against the first row
};

struct InterventionReport {
  std::string about;  ///< which weights and examples, in a few words
  std::vector<InterventionRow> rows;
};

/// A statistic of the spectra against how well the runs did.
struct CorrelationReport {
  struct Point {
    std::string run, group;  ///< group: what shares a colour
    double value = 0, figure = 0;
  };
  std::string stage, statistic, figure;  ///< figure: accuracy or loss
  int layer = -1;                        ///< -1: mean over the layers
  int64_t n = 0;
  double rho = not_recorded, low = not_recorded, high = not_recorded;  ///< Spearman's, its interval
  double level = 0.95, p_value = not_recorded, q_value = not_recorded;
  std::vector<Point> points;
};

struct RunReport {
  std::string name;
  std::string config;  ///< as text, shown folded
  std::vector<std::pair<std::string, std::string>>
      headline;                    ///< a row of the table over runs: column and cell
  std::vector<MetricRow> metrics;  ///< by step
  std::vector<SpectrumReport> spectra;
  InterventionReport interventions = {};
};

struct Report {
  std::string title = "eigentrace report";
  std::string subtitle;  ///< e.g. the task, the machine, the date; may be empty
  std::vector<RunReport> runs;
  std::vector<CorrelationReport> correlations;  ///< the most telling first
};

}  // namespace eigentrace
