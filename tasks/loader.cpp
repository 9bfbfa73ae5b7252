#include "tasks/loader.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "tasks/sampling.h"
#include "tensor/error.h"

namespace eigentrace {

Loader::Loader(const Task& task, Split split, const LoaderOptions& options, LoaderPosition start)
    : task_(task), split_(split), options_(options), start_(start), position_(start) {
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
  const int threads = std::max(1, options.threads);
  ring_.resize(static_cast<size_t>(std::max<int64_t>(threads + 1, options.buffers)));
  ready_.assign(ring_.size(), -1);
  end_ = options.epochs == 0 ? INT64_MAX
                             : std::max<int64_t>(0, (options.epochs - start.epoch) * steps_ - start.step);
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
}

Loader::~Loader() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

LoaderPosition Loader::position_of(int64_t ticket) const {
  const int64_t step = start_.step + ticket;
  return {start_.epoch + step / steps_, step % steps_};
}

LoaderPosition Loader::after(LoaderPosition at) const {
  return at.step + 1 < steps_ ? LoaderPosition{at.epoch, at.step + 1} : LoaderPosition{at.epoch + 1, 0};
}

void Loader::work() {
  const int64_t examples = task_.size(split_), buffers = static_cast<int64_t>(ring_.size());
  const Padding padding{options_.pad_last ? options_.batch_size : 0, options_.time_multiple};
  std::vector<int64_t> order(static_cast<size_t>(examples));
  std::iota(order.begin(), order.end(), 0);
  int64_t shuffled_epoch = -1;
  for (;;) {
    int64_t ticket;
    {
      std::unique_lock lock(mutex_);
      // The consumer may still read batch taken_ − 1, so one place of the ring is never the threads'.
      changed_.wait(lock, [&] { return stop_ || next_ >= end_ || next_ - taken_ + 1 < buffers; });
      if (stop_ || next_ >= end_ || error_) return;
      ticket = next_++;
    }
    try {
      const LoaderPosition at = position_of(ticket);
      Batch& batch = ring_[static_cast<size_t>(ticket % buffers)];
      if (options_.shuffle && shuffled_epoch != at.epoch) {
        order = permutation(options_.seed, static_cast<uint64_t>(at.epoch), examples);
        shuffled_epoch = at.epoch;
      }
      const int64_t begin = at.step * options_.batch_size;
      const int64_t count = std::min(options_.batch_size, examples - begin);
      task_.make(split_, {order.data() + begin, static_cast<size_t>(count)}, batch, padding);
      if (options_.sort_tokens) sort_tokens(batch, task_.shape(split_).vocabulary);
      batch.epoch = at.epoch, batch.step = at.step;
      std::lock_guard lock(mutex_);
      ready_[static_cast<size_t>(ticket % buffers)] = ticket;
    } catch (...) {
      std::lock_guard lock(mutex_);
      if (ticket < error_at_) error_ = std::current_exception(), error_at_ = ticket;
    }
    changed_.notify_all();
  }
}

const Batch* Loader::next() {
  const Batch* batch = nullptr;
  {
    std::unique_lock lock(mutex_);
    const auto place = static_cast<size_t>(taken_ % static_cast<int64_t>(ring_.size()));
    // A failed batch is reported when its turn comes; those before it, on other threads, still arrive.
    changed_.wait(lock, [&] { return ready_[place] == taken_ || taken_ >= end_ || error_at_ == taken_; });
    if (ready_[place] != taken_) {
      if (error_at_ == taken_) std::rethrow_exception(error_);
      return nullptr;
    }
    batch = &ring_[place];
    ++taken_;
  }
  changed_.notify_all();
  position_ = after(position_);
  return batch;
}

}  // namespace eigentrace
