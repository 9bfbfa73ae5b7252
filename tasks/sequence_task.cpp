#include "tasks/sequence_task.h"

#include <algorithm>

namespace eigentrace {

void SequenceTask::fill(Split split, std::span<const int64_t> indices, const Padding& padding,
                        Batch& out) const {
  const TaskShape sizes = shape(split);
  thread_local std::vector<int32_t> tokens;
  std::vector<size_t> starts;
  std::vector<int32_t> labels;
  tokens.clear();
  int64_t longest = 0;
  for (int64_t index : indices) {
    for (int64_t d = 0; d < sizes.documents; ++d) {
      starts.push_back(tokens.size());
      const int32_t label = sequence(split, index, d, tokens);
      if (d == 0) labels.push_back(label);
      longest = std::max(longest, static_cast<int64_t>(tokens.size() - starts.back()));
    }
  }
  starts.push_back(tokens.size());
  out.reset(sizes, static_cast<int64_t>(indices.size()), sizes.fixed_length ? sizes.time : longest, padding);
  const int64_t padded = out.batch / sizes.documents;
  for (int64_t e = 0; e < out.examples; ++e) {
    for (int64_t d = 0; d < sizes.documents; ++d) {
      const size_t from = starts[e * sizes.documents + d], to = starts[e * sizes.documents + d + 1];
      std::copy(tokens.begin() + from, tokens.begin() + to, out.row(d * padded + e).begin());
      out.lengths[d * padded + e] = static_cast<int32_t>(to - from);
    }
    out.label_sequence(e, labels[e]);
  }
}

}  // namespace eigentrace
