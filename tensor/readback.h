#pragma once
// From a GPU to host memory while it computes: pinned memory, a copy stream of its own.
#include <cstddef>
#include <memory>

#include "tensor/context.h"

namespace eigentrace {

/// One copy at a time. On the CPU nothing is copied: what was fetched is read where it lies.
class Readback {
 public:
  explicit Readback(Device device);
  ~Readback();
  Readback(const Readback&) = delete;
  Readback& operator=(const Readback&) = delete;

  /// Pinned memory for fetches of so many bytes, so that none of them has to ask for it.
  void reserve(size_t bytes);
  /// Copies `bytes` at `source` on the device, as the work enqueued on the context's stream so far leaves
  /// them. Does not wait.
  void fetch(Context& ctx, const std::byte* source, size_t bytes);
  /// What is enqueued on the context's stream from here on begins when the last fetch has left its source.
  void hold(Context& ctx);
  /// The bytes of the last fetch, until the next one; waits for them. From any thread.
  const std::byte* wait() const;

 private:
  struct Lane;
  std::unique_ptr<Lane> lane_;
};

}  // namespace eigentrace
