#pragma once
// Batches made ahead of their use: threads fill a small ring while the consumer computes.
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "tasks/task.h"

namespace eigentrace {

struct LoaderOptions {
  int64_t batch_size = 1;
  uint64_t seed = 0;    ///< of the order; examples have the task's own
  bool shuffle = true;  ///< each epoch its own permutation, a pure function of (seed, epoch); else 0, 1, 2, …
  int64_t epochs = 0;     ///< stop after so many epochs, counted from epoch 0 (0: never)
  bool pad_last = false;  ///< give the last, ragged batch batch_size examples too (the added have no labels)
  int64_t time_multiple = 1;  ///< round T up to a multiple, where length varies
  bool sort_tokens = true;    ///< fill Batch::sorted_order
  int64_t buffers = 3;        ///< one with the consumer, the others made ahead; at least threads + 1
  int threads = 1;            ///< that make batches; the order of batches does not depend on it
};

/// Where in the order a loader stands: the batch it hands out next.
struct LoaderPosition {
  int64_t epoch = 0;
  int64_t step = 0;  ///< within the epoch
};

/// Hands out the batches of a split in order. They depend neither on timing nor on where the loader started.
class Loader {
 public:
  /// Starts at `start`, as cheaply as at the beginning. The task must outlive the loader.
  /// Errors: an empty split, batch_size below 1, a step beyond the epoch.
  Loader(const Task& task, Split split, const LoaderOptions& options, LoaderPosition start = {});
  ~Loader();  ///< stops the threads; batches made ahead are thrown away
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  /// The next batch, null after the last epoch. Valid until the next call. An error of a thread is thrown
  /// here, after the batches made before it.
  const Batch* next();
  /// Position of the batch that next() hands out next: what a checkpoint stores.
  LoaderPosition position() const { return position_; }
  /// Batches of an epoch, the ragged one included.
  int64_t steps_per_epoch() const { return steps_; }

 private:
  void work();
  LoaderPosition position_of(int64_t ticket) const;
  LoaderPosition after(LoaderPosition at) const;

  const Task& task_;
  Split split_;
  LoaderOptions options_;
  int64_t steps_;
  LoaderPosition start_, position_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Batch> ring_;     // batch number i, counted from the start, lies at i % buffers
  std::vector<int64_t> ready_;  // the number of the batch that has been finished there; −1: none
  int64_t next_ = 0;            // number of the batch that a thread begins next
  int64_t taken_ = 0;           // batches handed out
  int64_t end_;                 // number of batches there are
  bool stop_ = false;
  std::exception_ptr error_;
  int64_t error_at_ = INT64_MAX;  // number of the first batch that could not be made
  std::vector<std::thread> threads_;
};

}  // namespace eigentrace
