#pragma once
// What a person asks of the tasks: which there are, what one is, an example to look at, files for other
// programs, whether a data set is whole, how fast examples are made.
#include <string>
#include <vector>

#include "tasks/config.h"

namespace eigentrace {

struct TaskEntry {
  std::string name, about;
  bool reads_files = false;  ///< by default; a generator makes its examples itself
};
/// All tasks, in the order of TaskConfig.
std::vector<TaskEntry> list_tasks();

/// Name, purpose, every key with value and meaning, and, if `task` is given, sizes. `json`: one object.
std::string describe_task(const TaskConfig& config, const Task* task, bool json);

/// One example: as a person can read it, or as one JSON object (index, length, tokens or values, labels).
std::string sample_task(const Task& task, Split split, int64_t index, bool json);

struct ExportOptions {
  std::string out;             ///< folder
  std::string format = "npy";  ///< npy, jsonl or official (the form the set is published in)
  std::vector<Split> splits = {Split::train, Split::validation, Split::test};
  int64_t limit = 1000;  ///< examples of a split (0: all)
};
/// Writes examples 0..limit-1 of each split and returns the files.
/// npy: SPLIT_tokens [N,T] i32 or SPLIT_values [N,T,F] f32, SPLIT_lengths [N], SPLIT_labels [N,T] (-100:
/// none) or [N]; two documents: N rows of first documents, then N of second ones. jsonl: the objects of
/// sample_task. official: ListOps' TSV files, Pathfinder's folders of PNG images. Errors (usage): another
/// format, or a task that is published in none of these.
std::vector<std::string> export_task(const TaskConfig& config, const ExportOptions& options);

/// Looks at up to `limit` examples of each split (0: all): tokens, lengths and labels within the shape, the
/// same example when asked for again, inputs that occur twice in a split or in two splits; then what the task
/// says of its files.
std::vector<Finding> check_task(const Task& task, int64_t limit);

struct Throughput {
  int64_t examples = 0;
  double seconds = 0;  ///< processor time of one thread
  double examples_per_second() const { return static_cast<double>(examples) / seconds; }
};
/// Makes batches of `batch_size` in shuffled order (sorted_order too) for about `seconds` of processor time.
Throughput measure_task(const Task& task, Split split, int64_t batch_size, double seconds);

}  // namespace eigentrace
