#pragma once
// Spectra along training: every spectral.every steps the statistics and a sample of the eigenvalues, as
// spectrum_step<N>.npz and .json of the run's folder. The pass runs between two steps, on the training thread
// and device; S4's eigenproblems, statistics and files are a worker thread's, from copies on the host.
#include <future>
#include <memory>

#include "tools/device_batch.h"
#include "tools/run_folder.h"
#include "tools/run_spectra.h"

namespace eigentrace {

/// Eigenvalues of one layer that spectrum_step<N>.npz keeps at most (about; whole sequences or channels).
inline constexpr int64_t eigenvalues_along_training = 1 << 16;

/// A reading changes nothing that training depends on: no dropout is drawn, no running statistic moves, and
/// the weights are those of a run without readings to the last bit. A run that is resumed writes the same
/// arrays.
class TrainingSpectra {
 public:
  /// `model` and `task` must outlive it. Nothing is made while spectral.every is 0.
  TrainingSpectra(const RunConfig& config, const RunFolder& folder, const Task& task, const Model& model,
                  std::shared_ptr<const Interventions> interventions = nullptr);
  ~TrainingSpectra();
  TrainingSpectra(const TrainingSpectra&) = delete;

  bool due(int64_t step) const;
  /// The model as it stands after `step` steps. Waits for the reading before it. The record's `about` has
  /// pass_seconds, work_seconds (the worker's) and wait_seconds (training's, for the reading before).
  /// Errors: those of this pass and of the worker's last reading.
  void read(Context& ctx, int64_t step);
  /// Waits until everything read is on disk. Errors: the worker's.
  void finish();

 private:
  const RunConfig config_;
  const RunFolder folder_;
  const Task& task_;
  const Model& model_;
  const std::shared_ptr<const Interventions> interventions_;  ///< that the run is trained with
  std::unique_ptr<Model> copy_;  ///< where spectral.dtype is not the model's type
  std::unique_ptr<DeviceBatch> data_;
  std::future<void> worker_;
};

}  // namespace eigentrace
