#pragma once
// What a task is: examples as a pure function of (configuration, split, index), and the batch they are
// written to. Everything here is plain host memory; only the trainer moves it to a device.
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace eigentrace {

enum class Split { train, validation, test };
enum class Encoding { tokens, floats };

/// "train", "validation" or "test".
const char* split_name(Split split);
/// The split of that name ("val" and "eval" too); a usage error for any other.
Split split_from_name(const std::string& name);

/// The sizes a model for this task needs. They depend on the configuration and the split, never on the batch.
struct TaskShape {
  int64_t time = 0;           ///< T: positions of the longest example (l_max of the fixed-length families)
  int64_t features = 0;       ///< F: numbers a position has (0: the input is tokens)
  int64_t vocabulary = 0;     ///< different input tokens (0: the input is floats)
  int64_t classes = 0;        ///< different labels, the width of the model's output
  bool per_position = false;  ///< labels belong to positions (MQAR), else to the whole sequence (CIFAR)
  int64_t labels_per_example = 1;  ///< most labels an example can have: label capacity / examples
  bool fixed_length = true;        ///< every batch has exactly `time` positions
  int64_t documents = 1;           ///< sequences an example has: 2 where two documents are compared
  Encoding encoding() const { return features > 0 ? Encoding::floats : Encoding::tokens; }
};

/// How a batch is rounded up, so that one captured step serves many batches.
struct Padding {
  int64_t examples = 0;  ///< pad to so many examples, with rows that have no label (0: none are added)
  int64_t time_multiple =
      1;  ///< round T up to a multiple (only where length varies; never beyond shape.time)
};

/// One batch on the host: fixed capacities, sizes as data.
struct Batch {
  int64_t examples = 0;  ///< examples that exist (padding not counted)
  int64_t batch = 0;     ///< B: sequences, padding included; of two documents all first ones, then all second
  int64_t time = 0;      ///< T: capacity of a row
  int64_t valid_time = 0;  ///< positions of the longest sequence (below T if T was rounded up)
  int64_t features = 0;    ///< F, 0 for tokens
  bool per_position = false;
  std::vector<int32_t> tokens;   ///< [B,T] if the input is tokens; 0 where nothing is
  std::vector<float> values;     ///< [B,T,F] if the input is floats
  std::vector<int32_t> lengths;  ///< [B] valid positions (1 in padding rows, so that nothing divides by 0)
  /// The labelled places in ascending order: row b*T+t (per position) or b (per sequence), class, weight.
  /// From label_count up to the capacity there is padding: last row, class 0, weight 0.
  std::vector<int32_t> label_rows, labels;
  std::vector<float> label_weights;
  int64_t label_count = 0;
  /// [B*T] rows b*T+t sorted stably by token id (empty until sort_tokens): the order in which an embedding
  /// gradient sums, so that it has the same bits everywhere.
  std::vector<int32_t> sorted_order;
  int64_t epoch = 0, step = 0;  ///< where in its loader's order this batch stands (step within the epoch)

  /// Empties the batch and gives it room: B = documents * max(examples, padding.examples) rows of `longest`
  /// positions, rounded up as `padding` asks. Inputs are 0, lengths `longest` (1 in padding rows), no labels.
  void reset(const TaskShape& shape, int64_t examples, int64_t longest, const Padding& padding);
  std::span<int32_t> row(int64_t b) { return {tokens.data() + b * time, static_cast<size_t>(time)}; }
  std::span<const int32_t> row(int64_t b) const {
    return {tokens.data() + b * time, static_cast<size_t>(time)};
  }
  std::span<float> value_row(int64_t b) {
    return {values.data() + b * time * features, static_cast<size_t>(time * features)};
  }
  /// Labels position t of sequence b. Calls come in ascending order.
  void label(int64_t b, int64_t t, int32_t y) { add_label(b * time + t, y); }
  /// Labels the whole sequence b.
  void label_sequence(int64_t b, int32_t y) { add_label(b, y); }

 private:
  friend class Task;
  void add_label(int64_t row, int32_t y);
  void pad_labels();
  int64_t capacity_ = 0;
};

/// Fills batch.sorted_order by a counting sort over the vocabulary (O(B*T + V)); nothing for float inputs.
void sort_tokens(Batch& batch, int64_t vocabulary);

/// One thing a check of a task found.
struct Finding {
  std::string what;  ///< e.g. "records"
  std::string text;
  bool good = true;
};

/// A generator or a data set. Immutable once made, so any number of threads may call it.
class Task {
 public:
  virtual ~Task() = default;
  /// The name of the configuration it was made from, e.g. "mqar".
  virtual std::string name() const = 0;
  /// Number of examples; 0 if the task has no such split.
  virtual int64_t size(Split split) const = 0;
  /// Sizes; only labels_per_example may depend on the split.
  virtual TaskShape shape(Split split) const = 0;
  /// Writes the examples `indices` of `split` to `out`, in that order. The same arguments give the same
  /// batch, on any thread. Errors: an index outside 0..size-1, no index.
  void make(Split split, std::span<const int64_t> indices, Batch& out, const Padding& padding = {}) const;
  /// What a token is called, e.g. "<pad>" or "x" (empty: ids are their own names). Kept with a checkpoint.
  virtual std::vector<std::string> symbols() const { return {}; }
  /// What the files behind the task are like, compared with the published set (generators have none).
  virtual std::vector<Finding> inspect() const { return {}; }
  /// One example as a person can read it.
  virtual std::string show(Split split, int64_t index) const;

 protected:
  /// Writes all examples. The default gives a batch of full length and calls `example` for each.
  virtual void fill(Split split, std::span<const int64_t> indices, const Padding& padding, Batch& out) const;
  /// Writes example `index` to sequence b of `out` (tasks of fixed length implement this one).
  virtual void example(Split split, int64_t index, int64_t b, Batch& out) const;
};

/// Compares the symbols a model was trained with to the task's; an error that names the first difference.
void check_symbols(const Task& task, const std::vector<std::string>& stored);

}  // namespace eigentrace
