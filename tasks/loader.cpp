#include "tasks/loader.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "tasks/sampling.h"
#include "tensor/error.h"

namespace eigentrace {

Loader::Loader(const Task& task, Split split, const LoaderOptions& options, LoaderPosition start)
    : task_(task), split_(split), options_(options), position_(start) {
  const int64_t examples = task.size(split);
  if (options.batch_size < 1)
    fail_usage(fmt::format("loader: batch_size: expected at least 1, found {}", options.batch_size));
  if (examples < 1)
    fail_usage(fmt::format("loader: split: task {} has no {} examples; choose another split or its size",
                           task.name(), split_name(split)));
  steps_ = (examples + options.batch_size - 1) / options.batch_size;
  if (start.epoch < 0 || start.step < 0 || start.step >= steps_)
    fail(fmt::format(
        "loader: start: expected a step from 0 to {} of an epoch from 0, found step {} of epoch {}; "
        "resume with the batch_size the run had",
        steps_ - 1, start.step, start.epoch));
  ring_.resize(std::max<int64_t>(2, options.buffers));
  thread_ = std::thread([this, start] { work(start); });
}

Loader::~Loader() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

LoaderPosition Loader::after(LoaderPosition at) const {
  return at.step + 1 < steps_ ? LoaderPosition{at.epoch, at.step + 1} : LoaderPosition{at.epoch + 1, 0};
}

void Loader::work(LoaderPosition at) {
  try {
    const int64_t examples = task_.size(split_), vocabulary = task_.shape(split_).vocabulary;
    const int64_t buffers = static_cast<int64_t>(ring_.size());
    const Padding padding{options_.pad_last ? options_.batch_size : 0, options_.time_multiple};
    std::vector<int64_t> order(examples);
    std::iota(order.begin(), order.end(), 0);
    int64_t shuffled_epoch = -1;
    for (; options_.epochs == 0 || at.epoch < options_.epochs; at = after(at)) {
      Batch* batch = nullptr;
      {
        std::unique_lock lock(mutex_);
        // The consumer may still read batch taken_ - 1, so one place of the ring is never the thread's.
        changed_.wait(lock, [&] { return stop_ || made_ - taken_ + 1 < buffers; });
        if (stop_) return;
        batch = &ring_[made_ % buffers];
      }
      if (options_.shuffle && shuffled_epoch != at.epoch) {
        order = permutation(options_.seed, static_cast<uint64_t>(at.epoch), examples);
        shuffled_epoch = at.epoch;
      }
      const int64_t begin = at.step * options_.batch_size;
      const int64_t count = std::min(options_.batch_size, examples - begin);
      task_.make(split_, {order.data() + begin, static_cast<size_t>(count)}, *batch, padding);
      if (options_.sort_tokens) sort_tokens(*batch, vocabulary);
      batch->epoch = at.epoch, batch->step = at.step;
      {
        std::lock_guard lock(mutex_);
        ++made_;
      }
      changed_.notify_all();
    }
  } catch (...) {
    std::lock_guard lock(mutex_);
    error_ = std::current_exception();
  }
  {
    std::lock_guard lock(mutex_);
    finished_ = true;
  }
  changed_.notify_all();
}

const Batch* Loader::next() {
  const Batch* batch = nullptr;
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return taken_ < made_ || finished_; });
    if (taken_ == made_) {
      if (error_) std::rethrow_exception(error_);
      return nullptr;
    }
    batch = &ring_[taken_ % static_cast<int64_t>(ring_.size())];
    ++taken_;
  }
  changed_.notify_all();
  position_ = after(position_);
  return batch;
}

}  // namespace eigentrace
