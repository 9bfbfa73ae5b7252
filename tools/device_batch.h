#pragma once
// A host batch on its way to the model. All tensors of a batch lie in one block, so that it crosses the bus
// in one copy, and a shape seen before gets the block it had, as a captured step needs.
#include <map>
#include <memory>
#include <vector>

#include "nn/model.h"
#include "tasks/task.h"
#include "tensor/staging.h"

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
  /// With a context of the GPU the copy runs beside the work enqueued there and is in place before what is
  /// enqueued next; without one it is done on return.
  void load(const Batch& batch, bool masked, LossAverage average, Context* ctx = nullptr);
  const ModelInput& input() const { return input_; }
  const Labels& labels() const { return labels_; }
  int64_t sequences() const { return sequences_; }
  int64_t time() const { return time_; }

 private:
  Device device_;
  DType dtype_;
  int64_t sequences_ = 0, time_ = 0;
  ModelInput input_;
  Labels labels_;
  std::map<std::vector<int64_t>, std::shared_ptr<Storage>> blocks_;  // by the sizes of the parts
  std::unique_ptr<Staging> staging_;
};

}  // namespace eigentrace
