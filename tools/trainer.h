#pragma once
// Training: composes a task, a model, an optimiser and a run folder.
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "nn/checkpoint.h"
#include "nn/config/config.h"
#include "nn/intervention.h"
#include "nn/model.h"
#include "nn/optimiser.h"
#include "nn/schedule.h"
#include "tasks/loader.h"
#include "tensor/io/file.h"
#include "tools/device_batch.h"
#include "tools/evaluate.h"
#include "tools/run_folder.h"
#include "tools/tensorboard.h"

namespace eigentrace {

struct TrainerOptions {
  Device device;
  DType dtype = DType::f32;
  Precision precision = Precision::fp32;         ///< of float32 matrix products
  std::optional<Precision> attention_precision;  ///< of those inside softmax attention; unset: `precision`
  bool tensorboard = false;                      ///< write an event file beside metrics.jsonl
  bool capture = true;    ///< on a GPU: replay the step as a graph (same bits either way)
  bool progress = true;   ///< a live line on standard error
  int64_t max_steps = 0;  ///< stop, as a signal would, after so many steps from here; 0: do not
  /// Stop (as a signal would) before this step, for tests of stop and resume. −1: do not.
  int64_t stop_before = -1;
};

/// A step looked at value by value.
struct StepLook {
  std::string not_finite;  ///< the first op and layer with a value that is not finite, or empty
  double loss = 0, gradient_norm = 0;
};

class Trainer {
 public:
  /// A new run in `folder`: writes config.yaml and initial.safetensors.
  Trainer(const RunConfig& config, const RunFolder& folder, const TrainerOptions& options);
  /// Goes on from the checkpoint of `folder` (or its start, if there is none yet), to the same bits that an
  /// uninterrupted run gives. The run's own type is kept.
  static std::unique_ptr<Trainer> resume(const RunFolder& folder, const TrainerOptions& options);

  /// Trains to the end, or until SIGINT or SIGTERM, which save a checkpoint first. Returns the run's
  /// description. Error: a loss or gradient that is not finite, naming step, op and layer; batch and state of
  /// that step are kept in the folder (failed_batch.npz, failed.safetensors), the last checkpoint stays.
  RunInfo run();
  /// Where a run's failed step began. options.dtype is the type to look at it in.
  static std::unique_ptr<Trainer> failed(const RunFolder& folder, const TrainerOptions& options);
  /// Passes `batch` forward and backward as the present step would, and changes nothing.
  StepLook look_at(const Batch& batch);

  Model& model() { return *model_; }
  const Task& task() const { return *task_; }
  const RunConfig& config() const { return config_; }
  Context& ctx() { return ctx_; }

 private:
  struct Sums {  // over the steps since the last metrics row
    double loss = 0, correct = 0, labels = 0, norm = 0, steps = 0;
  };
  Trainer(const RunConfig& config, const RunFolder& folder, const TrainerOptions& options, RunInfo info);
  void set_interventions();
  LoaderOptions batch_order() const;
  LoaderPosition position(int64_t step) const;
  struct Before {  // what a step changes even if its values are not finite
    int64_t step = 0, optimiser_steps = 0;
    std::vector<Tensor> tensors;
  };
  std::vector<Tensor> touched() const;  ///< running statistics, and gradients summed over steps
  void remember();
  void restore(int64_t step);  ///< stands before `step`, from which on no weight has moved
  /// Notes what a step needs, and readings in steps if not null. Error: the device has less.
  void plan(const Batch& batch, StepReading* reading);
  void step(const Batch& batch, StepReading* reading);
  void collect();  ///< the results of the steps that have not been looked at
  [[noreturn]] void fail_step(int64_t step);
  void load(const std::string& path);
  TrainState state();
  CheckpointNotes notes() const;
  void log_row(AppendFile& metrics, double seconds);
  void evaluate_now(AppendFile& metrics);
  void save(AppendFile& metrics);
  bool evaluation_due() const;
  bool good_enough() const;  ///< the last evaluation met the stop criterion
  std::string progress_text() const;
  /// What a checkpoint keeps besides tensors and step, once: for saving and for resuming.
  template <class Visitor>
  void visit_state(Visitor&& visit) {
    visit("metrics_bytes", metrics_bytes_);
    visit("wall_seconds", info_.wall_seconds);
    visit("sums.loss", sums_.loss);
    visit("sums.correct", sums_.correct);
    visit("sums.labels", sums_.labels);
    visit("sums.norm", sums_.norm);
    visit("sums.steps", sums_.steps);
    visit("shown_loss", shown_loss_);
    visit("shown_accuracy", shown_accuracy_);
    visit("evaluated_accuracy", evaluated_accuracy_);
    visit("evaluated_loss", evaluated_loss_);
  }

  RunConfig config_;
  RunFolder folder_;
  TrainerOptions options_;
  std::unique_ptr<Task> task_;
  std::unique_ptr<Model> model_;
  LearningRates rates_;
  Optimiser optimiser_;
  Context ctx_;
  DeviceBatch data_;
  TrainStep train_step_;
  std::unique_ptr<Evaluator> evaluator_;
  std::unique_ptr<TensorboardFile> tensorboard_;
  Before before_;
  std::vector<double> labels_;  // number of labels of each step not collected yet
  RunInfo info_;
  bool published_, masked_;
  LossAverage average_;
  std::shared_ptr<const Interventions> interventions_;  ///< spectral.intervention; null: none
  std::unique_ptr<Intervener> intervener_;
  PassHook hook_;  ///< of training and evaluation
  int64_t step_ = 0;
  Sums sums_;
  uint64_t metrics_bytes_ = 0;
  double shown_loss_ = 0, shown_accuracy_ = 0, evaluated_accuracy_ = -1, evaluated_loss_ = 0;
};

}  // namespace eigentrace
