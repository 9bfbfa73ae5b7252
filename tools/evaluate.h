#pragma once
// Loss and accuracy of a split, again and again during a run.
#include <functional>
#include <optional>

#include "nn/train_step.h"
#include "tasks/loader.h"
#include "tools/device_batch.h"

namespace eigentrace {

/// Loss and accuracy of a whole split.
struct Evaluation {
  double loss = 0, accuracy = 0;
  /// MAD only: mad_accuracy of each batch, averaged over the batches.
  std::optional<double> macro_accuracy;
  int64_t labels = 0;
  /// What stopping and plateaus look at.
  double score() const { return macro_accuracy.value_or(accuracy); }
};

struct EvaluationOptions {
  Split split = Split::test;
  int64_t batch_size = 64;
  bool mean_of_batches = false;  ///< mean over batches, as the study reports, instead of over labels
  int64_t examples = 0;          ///< at most about so many, from all over the split; 0: all
  PassHook hook;
};

/// Evaluates without dropout. The last batch is padded with examples that have no label. Host batches are
/// kept for the next call if they fit into 256 MB; on a GPU the pass is captured like a training step.
class Evaluator {
 public:
  Evaluator(Context& ctx, const Model& model, const Task& task, EvaluationOptions options);
  Evaluation run();

 private:
  void add(const Batch& batch);
  Context& ctx_;
  const Model& model_;
  const Task& task_;
  EvaluationOptions options_;
  bool mad_;
  DeviceBatch data_;
  GraphCache graphs_;
  Tensor sums_, results_;  // f64 [2] of the batch just done; [batches, 2]
  std::vector<Batch> kept_;
  bool all_kept_ = false;
  int64_t batches_ = 0;
  std::vector<double> labels_, macro_;
};

Evaluation evaluate(Context& ctx, const Model& model, const Task& task, Split split, int64_t batch_size,
                    bool mean_of_batches, int64_t examples = 0, const PassHook& hook = {});

/// True iff lengths are handed to pooling: S4, S5 and LRU pool over the valid length; the others over the
/// padded batch, as the study does.
bool masked_pooling(const Model& model, const Task& task);
/// What T is rounded up to. S4, S5 and LRU take every batch at the task's full length: it enters BatchNorm's
/// statistics and S4's kernel. On a GPU lengths are rounded so that few graphs serve all batches.
int64_t time_multiple(const Model& model, const Task& task, Device device);

}  // namespace eigentrace
