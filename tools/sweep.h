#pragma once
// Sweeps: one file names a base configuration and what varies; each point is a run of its own.
//
// The study's form (nothing else in the file; the first key varies slowest):
//
//   base_config: mqar.yaml
//   sweep:
//     model: {num_layers: [1, 4]}
//     train: {lr: [1e-4, 1e-3]}
//     seed: [1919, 2222]
//
// Ours (format: eigentrace-sweep/1):
//
//   format: eigentrace-sweep/1
//   base_config: [softmax.yaml, linear.yaml]   # one file, or several: they vary slowest
//   set: {train.total_steps: 300}              # the same for all points
//   grid: {train.lr: [1e-3, 4e-3]}             # full product, first key slowest
//   zip: {model.state_dim: [16, 32], model.num_heads: [4, 2]}   # lists of one length, walked together
//   seeds: [1, 2, 3]
//
// Keys may be dotted or nested in both. base_config is looked for beside the sweep's file, then from where
// the program runs.
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace eigentrace {

inline constexpr const char* sweep_format = "eigentrace-sweep/1";

/// One key that varies and its value here, as YAML text: "train.lr", "1e-3".
struct SweepSetting {
  std::string key, value;
  bool operator==(const SweepSetting&) const = default;
};

struct SweepPoint {
  std::string name;                    ///< of its run folder: what varies, "lr=1e-3_seed=1"
  std::vector<SweepSetting> settings;  ///< in the order of the file
  std::string base;                    ///< path of its base configuration
  std::string config;                  ///< resolved, as YAML in our dialect
  std::string task;
  uint64_t seed = 0;
  std::optional<int64_t> steps;   ///< expected; none: only the data know how long an epoch is
  std::optional<int64_t> epochs;  ///< where training is by epochs
};

struct SweepPlan {
  std::string name;                  ///< of the file, without its extension
  std::vector<SweepPoint> points;    ///< order and names depend on the file alone
  std::vector<std::string> notices;  ///< what its configurations say without effect, each once
};

/// Every point of a sweep, its configuration read and checked. `overrides` ("a.b=value") apply to all points.
/// Errors (usage), with file and line: keys that the form does not have, empty lists, a value twice, a key
/// given twice, lists of zip that differ in length, no base configuration, more than 100,000 points, whatever
/// read_config refuses (with the point's name); in our form two points that are the same run.
SweepPlan read_sweep(const std::string& text, const std::string& origin,
                     const std::vector<std::string>& overrides = {});
SweepPlan read_sweep_file(const std::string& path, const std::vector<std::string>& overrides = {});

/// The plan as a table: point, settings, expected steps, and the state of each (as many as points, or none).
std::string plan_table(const SweepPlan& plan, const std::vector<std::string>& states = {});

}  // namespace eigentrace
