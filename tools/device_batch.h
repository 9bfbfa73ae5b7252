#pragma once
// A host batch on its way to the model: the same tensors are reused as long as the capacities stay the same.
#include "nn/model.h"
#include "tasks/task.h"

namespace eigentrace {

/// What the loss is divided by.
enum class LossAverage : unsigned char {
  labelled,      ///< the labelled rows
  all_positions  ///< every position, as the study's S4, S5 and LRU trainer does
};

class DeviceBatch {
 public:
  DeviceBatch(Device device, DType dtype) : device_(device), dtype_(dtype) {}
  /// Copies `batch` (tokens sorted) into the tensors. `masked`: hand the lengths to pooling (S4, S5, LRU).
  void load(const Batch& batch, bool masked, LossAverage average);
  const ModelInput& input() const { return input_; }
  const Labels& labels() const { return labels_; }
  int64_t sequences() const { return sequences_; }
  int64_t time() const { return time_; }

 private:
  template <class T>
  void put(Tensor& tensor, const std::vector<T>& values, const Shape& shape, DType dtype);
  Device device_;
  DType dtype_;
  int64_t sequences_ = 0, time_ = 0;
  ModelInput input_;
  Labels labels_;
  Tensor lengths_, valid_time_;
};

}  // namespace eigentrace
