#pragma once
// Spectra along training: every spectral.every steps the statistics and a sample of the eigenvalues, as
// spectrum_step<N>.npz and .json of the run's folder. What they are a function of is copied out of the N-th
// step's own pass (spectral.pass: training), or out of an evaluation pass after it; eigenvalues, statistics
// and files are a worker thread's, from copies on the host.
#include <future>
#include <memory>

#include "tools/device_batch.h"
#include "tools/run_folder.h"
#include "tools/run_spectra.h"

namespace eigentrace {

/// Eigenvalues of one layer that spectrum_step<N>.npz keeps at most (about; whole sequences or channels).
inline constexpr int64_t eigenvalues_along_training = 1 << 16;

/// A reading changes nothing that training depends on: the weights are those of a run without readings to the
/// last bit. A run that is resumed writes the same arrays.
class TrainingSpectra {
 public:
  /// `model` and `task` must outlive it. Nothing is made while spectral.every is 0.
  TrainingSpectra(const RunConfig& config, const RunFolder& folder, const Task& task, const Model& model,
                  std::shared_ptr<const Interventions> interventions = nullptr);
  ~TrainingSpectra();
  TrainingSpectra(const TrainingSpectra&) = delete;

  bool due(int64_t step) const;
  /// What readings copy out of training steps; null: there are none, or they are passes of their own: their
  /// batch is not the training's, spectral.reading is not exact or spectral.dtype not the run's type.
  StepReading* in_step() const { return in_step_.get(); }
  /// Before the step that is read: waits for the reading before it. Errors: the worker's of that one.
  void wait();
  /// After that step, `step` of them in all, has been enqueued: the first spectral.batch sequences of its
  /// batch, as its pass saw them (masks drawn, the run's precision, the weights before its update; steps that
  /// only fill up a bucket left out). The record's `about` has work_seconds (the worker's) and wait_seconds
  /// (training's, for the reading before).
  void take(int64_t step, const Batch& batch);
  /// An evaluation pass of the model as it stands after `step` steps, on the first sequences of the test
  /// split, in float32 products. `about` has besides pass_seconds. Errors: those of the pass and of wait.
  void read(Context& ctx, int64_t step);
  /// Waits until everything read is on disk. Errors: the worker's.
  void finish();

 private:
  /// `rest` and the files, on the worker.
  void work(int64_t step, std::vector<std::pair<std::string, std::string>> about,
            std::function<SpectrumRecord()> rest);
  SpectrumRequest request() const;

  const RunConfig config_;
  const RunFolder folder_;
  const Task& task_;
  const Model& model_;
  const std::shared_ptr<const Interventions> interventions_;  ///< that the run is trained with
  std::unique_ptr<Model> copy_;  ///< where spectral.dtype is not the model's type
  std::unique_ptr<DeviceBatch> data_;
  std::unique_ptr<StepReading> in_step_;
  double waited_ = 0;
  std::future<void> worker_;
};

}  // namespace eigentrace
