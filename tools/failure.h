#pragma once
// A step that stopped a run because a value was not finite: its batch on disk, and tensors looked through.
#include <string>

#include "nn/module.h"
#include "tasks/task.h"

namespace eigentrace {

struct FailedBatch {
  Batch batch;
  int64_t step = 0;
  uint64_t seed = 0;
};
/// An .npz for NumPy: tokens [B,T] or values [B,T,F], lengths [B], label_rows, labels, label_weights (padding
/// included, label_count are real), examples, valid_time, epoch, epoch_step, step, seed.
void write_failed_batch(const std::string& path, const FailedBatch& failed);
/// Back, checked against what the task's batches can be. Error: a damaged file, or another task's.
FailedBatch read_failed_batch(const std::string& path, const TaskShape& shape);

bool all_finite(const Tensor& tensor);
/// "weight 'layers.0.…' is not finite (3 of 96 values, the first nan)", or empty. `gradients`: of those.
std::string first_not_finite(const ParameterList& list, bool gradients);
/// √(Σ dw²) over all parameters, in double.
double gradient_norm(const ParameterList& list);

}  // namespace eigentrace
