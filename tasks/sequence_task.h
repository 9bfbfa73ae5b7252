#pragma once
// Base of the classifiers of token sequences of varying length (ListOps, IMDB, Retrieval).
#include "tasks/task.h"

namespace eigentrace {

/// Ids every such vocabulary begins with.
constexpr int32_t kPad = 0, kUnknown = 1, kEnd = 2;

class SequenceTask : public Task {
 protected:
  /// Appends the tokens of one document of an example (its end mark too) to `out` and returns the label.
  virtual int32_t sequence(Split split, int64_t index, int64_t document, std::vector<int32_t>& out) const = 0;
  /// Pads with 0 to the longest sequence of the batch, or to shape().time where that is fixed.
  void fill(Split split, std::span<const int64_t> indices, const Padding& padding, Batch& out) const override;
};

}  // namespace eigentrace
