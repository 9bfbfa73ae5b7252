#pragma once
// From host memory to a GPU while it computes: pinned memory, a copy stream of its own, two buffers in turn.
#include <cstddef>
#include <memory>

#include "tensor/context.h"

namespace eigentrace {

class Staging {
 public:
  /// Error: not a GPU.
  explicit Staging(Device device);
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  /// Host memory to fill, at least `bytes`; waits until what was sent from it two sends ago has left.
  std::byte* buffer(size_t bytes);
  /// Copies the buffer to `destination` on the device: across the bus at once, into its place when the work
  /// enqueued on the context's stream so far is done. Does not wait.
  void send(Context& ctx, std::byte* destination, size_t bytes);

 private:
  struct Slots;
  std::unique_ptr<Slots> slots_;
};

}  // namespace eigentrace
