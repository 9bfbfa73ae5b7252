#pragma once
// A run on disk: what `train` writes and everything else reads.
//
//   config.yaml                  resolved configuration: `train` on it repeats the run
//   run.json                     seed, version, device, sizes, state (running, finished, stopped, failed)
//   metrics.jsonl                one line a log interval and one an evaluation
//   initial.safetensors          the weights before the first step
//   checkpoint.safetensors       the latest state, enough to go on to the same bits
//   spectrum_initial.npz/.json   eigenvalues and statistics before training,
//   spectrum_trained.npz/.json   after it,
//   spectrum_step<N>.npz/.json   and after N steps (spectral.every)
//   failed.safetensors           state before the step that stopped the run (a value was not finite),
//   failed_batch.npz             and that step's batch
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace eigentrace {

struct MetricsRow {
  int64_t step = 0;
  std::string split;  ///< "train": mean since the last row; "validation", "test": the whole split
  double loss = 0, accuracy = 0;
  std::optional<double> macro_accuracy;                               ///< evaluation rows of MAD
  double learning_rate = 0, gradient_norm = 0, steps_per_second = 0;  ///< train rows
};
/// One JSON line, and back. Error: not such a line.
std::string to_json(const MetricsRow& row);

struct RunInfo {
  std::string name, config_name, task, family;
  uint64_t seed = 0;
  std::string version, commit, blas_core, device, dtype;
  std::string precision = "fp32", attention_precision = "fp32";  ///< of float32 matrix products
  int threads = 0;
  int64_t parameters = 0, step = 0, total_steps = 0;
  std::string state;   ///< running, finished, stopped, failed
  std::string reason;  ///< why it ended: "all steps", "accuracy 0.993 > 0.99", "SIGINT", an error
  double wall_seconds = 0;
  double peak_step_memory_mib = 0;
};

/// Asks `taken` of `path` and, where it says no, of the folders below, in order of their names, four deep.
/// UsageError, led by `command`: `path` is no folder.
void search_folders(const std::string& command, const std::string& path,
                    const std::function<bool(const std::string&)>& taken);

class RunFolder {
 public:
  /// A new run's folder, which `prepare` then makes. UsageError: it holds a run already, and `force` is
  /// false.
  static RunFolder create(const std::string& path, bool force);
  /// Makes the folder and removes what a former run left in it.
  void prepare() const;
  /// An existing one. Error: not a run folder, or a format this program does not read.
  static RunFolder open(const std::string& path);
  static bool exists(const std::string& path);

  const std::string& path() const { return path_; }
  std::string config() const { return path_ + "/config.yaml"; }
  std::string info_file() const { return path_ + "/run.json"; }
  std::string metrics() const { return path_ + "/metrics.jsonl"; }
  std::string initial() const { return path_ + "/initial.safetensors"; }
  std::string checkpoint() const { return path_ + "/checkpoint.safetensors"; }
  std::string failed_state() const { return path_ + "/failed.safetensors"; }
  std::string failed_batch() const { return path_ + "/failed_batch.npz"; }
  std::string spectrum(const std::string& stage) const {
    return path_ + "/spectrum_" + stage;
  }  ///< no extension

  void write_info(const RunInfo& info) const;
  RunInfo read_info() const;
  /// All complete lines of metrics.jsonl; a last line that was cut short by a crash is left out.
  std::vector<MetricsRow> read_metrics() const;

 private:
  explicit RunFolder(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

}  // namespace eigentrace
