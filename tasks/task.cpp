#include "tasks/task.h"

#include <fmt/format.h>

#include <algorithm>

#include "tensor/error.h"

namespace eigentrace {

const char* split_name(Split split) {
  return split == Split::train ? "train" : split == Split::validation ? "validation" : "test";
}

Split split_from_name(const std::string& name) {
  if (name == "train") return Split::train;
  if (name == "validation" || name == "val" || name == "eval" || name == "valid") return Split::validation;
  if (name == "test") return Split::test;
  fail_usage(fmt::format("split: expected train, validation or test, found '{}'", name));
}

void Batch::reset(const TaskShape& shape, int64_t count, int64_t longest, const Padding& padding) {
  const int64_t padded = std::max(count, padding.examples);
  const int64_t multiple = std::max<int64_t>(1, padding.time_multiple);
  examples = count;
  batch = shape.documents * padded;
  valid_time = longest;
  // Rounding never goes beyond the longest example: learned positions end there.
  time = std::max(longest, std::min(shape.time, (longest + multiple - 1) / multiple * multiple));
  if (batch * time > INT32_MAX)
    fail_usage(
        fmt::format("batch: {} sequences of {} positions are {} rows, and rows are counted in 32 bits; "
                    "make batch_size smaller",
                    batch, time, batch * time));
  features = shape.features;
  per_position = shape.per_position;
  const bool floats = shape.encoding() == Encoding::floats;
  tokens.assign(floats ? 0 : batch * time, 0);
  values.assign(floats ? batch * time * features : 0, 0.0f);
  lengths.resize(batch);
  for (int64_t b = 0; b < batch; ++b) lengths[b] = b % padded < count ? static_cast<int32_t>(longest) : 1;
  capacity_ = padded * shape.labels_per_example;
  label_rows.clear(), labels.clear(), label_weights.clear(), sorted_order.clear();
  label_count = 0;
}

void Batch::add_label(int64_t row, int32_t y) {
  if (label_count == capacity_)
    fail(fmt::format("batch: more labels than the {} the task's shape promises", capacity_));
  label_rows.push_back(static_cast<int32_t>(row));
  labels.push_back(y);
  label_weights.push_back(1.0f);
  ++label_count;
}

void Batch::pad_labels() {
  const int64_t last = (per_position ? batch * time : batch) - 1;
  label_rows.resize(capacity_, static_cast<int32_t>(last));
  labels.resize(capacity_, 0);
  label_weights.resize(capacity_, 0.0f);
}

void sort_tokens(Batch& batch, int64_t vocabulary) {
  batch.sorted_order.clear();
  if (batch.tokens.empty()) return;
  std::vector<int32_t> start(vocabulary + 1, 0);
  for (int32_t id : batch.tokens) {
    if (id < 0 || id >= vocabulary)
      fail(
          fmt::format("sort_tokens: tokens: expected ids below the vocabulary {}, found {}", vocabulary, id));
    ++start[id + 1];
  }
  for (int64_t id = 0; id < vocabulary; ++id) start[id + 1] += start[id];
  batch.sorted_order.resize(batch.tokens.size());
  for (size_t row = 0; row < batch.tokens.size(); ++row)
    batch.sorted_order[start[batch.tokens[row]]++] = static_cast<int32_t>(row);
}

namespace {

/// Every batch passes here on its way to a device, which could answer a bad label with a loss of NaN only.
void check_labels(const Task& task, Split split, std::span<const int64_t> indices, const Batch& b) {
  const TaskShape shape = task.shape(split);
  const int64_t padded = b.batch / shape.documents;
  int64_t last = -1;
  for (int64_t i = 0; i < b.label_count; ++i) {
    const int64_t row = b.label_rows[i], sequence = b.per_position ? row / b.time : row;
    if (row <= last || sequence % padded >= b.examples || sequence >= b.batch)
      fail(fmt::format(
          "make: task {}: label {} belongs to row {} after {}: expected ascending rows of {} examples",
          task.name(), i, row, last, b.examples));
    if (b.labels[i] < 0 || b.labels[i] >= shape.classes)
      fail(fmt::format("make: task {}: label {} of {} example {}{} is out of range 0…{}; check the data set",
                       task.name(), b.labels[i], split_name(split), indices[sequence % padded],
                       b.per_position ? fmt::format(", position {},", row % b.time) : "", shape.classes - 1));
    last = row;
  }
}

}  // namespace

void Task::make(Split split, std::span<const int64_t> indices, Batch& out, const Padding& padding) const {
  const int64_t count = size(split);
  if (indices.empty()) fail("make: indices: expected at least one example, found none");
  for (int64_t index : indices)
    if (index < 0 || index >= count)
      fail(fmt::format("make: indices: task {} has {} {} examples, found index {}; ask for 0 to {}", name(),
                       count, split_name(split), index, count - 1));
  fill(split, indices, padding, out);
  check_labels(*this, split, indices, out);
  out.pad_labels();
}

void Task::fill(Split split, std::span<const int64_t> indices, const Padding& padding, Batch& out) const {
  const TaskShape sizes = shape(split);
  out.reset(sizes, static_cast<int64_t>(indices.size()), sizes.time, padding);
  for (size_t b = 0; b < indices.size(); ++b) example(split, indices[b], static_cast<int64_t>(b), out);
}

void Task::example(Split, int64_t, int64_t, Batch&) const {
  fail(fmt::format("task {}: neither fill nor example is implemented", name()));
}

std::string Task::show(Split split, int64_t index) const {
  Batch one;
  make(split, std::span(&index, 1), one);
  const bool floats = shape(split).encoding() == Encoding::floats;
  const std::vector<std::string> names = symbols();
  std::vector<std::string> above, below(one.valid_time);
  for (int64_t t = 0; t < one.valid_time; ++t) {
    if (floats) {
      const float* x = one.values.data() + t * one.features;
      above.push_back(fmt::format("{:.3g}", fmt::join(x, x + one.features, ",")));
    } else {
      const size_t id = static_cast<size_t>(one.tokens[t]);
      above.push_back(id < names.size() ? names[id] : std::to_string(id));
    }
  }
  for (int64_t i = 0; i < one.label_count && one.per_position; ++i)
    below[one.label_rows[i]] = std::to_string(one.labels[i]);
  std::string text =
      fmt::format("{} {} example {}: {} positions\n", name(), split_name(split), index, one.valid_time);
  // Inputs over labels, column by column, in lines of about a hundred characters.
  for (int64_t t = 0; t < one.valid_time;) {
    std::string upper = "input ", lower = "label ";
    for (; t < one.valid_time && upper.size() < 100; ++t) {
      const size_t width = std::max<size_t>({above[t].size(), below[t].size(), 1});
      upper += fmt::format(" {:>{}}", above[t], width);
      lower += fmt::format(" {:>{}}", below[t].empty() ? "." : below[t], width);
    }
    text += upper + "\n";
    if (one.per_position) text += lower + "\n";
  }
  if (!one.per_position) text += fmt::format("label  {}\n", one.labels[0]);
  return text;
}

void check_symbols(const Task& task, const std::vector<std::string>& stored) {
  const std::vector<std::string> found = task.symbols();
  if (stored == found) return;
  const auto [a, b] = std::mismatch(stored.begin(), stored.end(), found.begin(), found.end());
  fail(
      fmt::format("vocabulary of {}: the model was trained with {} symbols, the data have {}; the first "
                  "difference is id {}: expected '{}', found '{}'; use the data the model was trained on",
                  task.name(), stored.size(), found.size(), a - stored.begin(),
                  a == stored.end() ? "(none)" : *a, b == found.end() ? "(none)" : *b));
}

}  // namespace eigentrace
