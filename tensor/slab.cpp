#include "tensor/slab.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include "tensor/error.h"

namespace eigentrace {

Slab::Slab(Device device, size_t capacity, bool dry) : device_(device), capacity_(capacity), dry_(dry) {
  if (dry) {
    base_ = reinterpret_cast<std::byte*>(size_t{1} << 20);  // any aligned address that no kernel will touch
  } else if (device.is_cuda()) {
    base_ = static_cast<std::byte*>(device_allocate(device, capacity));
  } else {
    void* block =
        mmap(nullptr, capacity, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (block == MAP_FAILED) fail(fmt::format("Slab: cannot reserve {} bytes of address space", capacity));
    madvise(block, capacity, MADV_HUGEPAGE);
    base_ = static_cast<std::byte*>(block);
  }
  free_[0] = capacity;
}

Slab::~Slab() {
  if (dry_) return;
  if (device_.is_cuda())
    device_free(device_, base_);
  else
    munmap(base_, capacity_);
}

void* Slab::allocate(size_t bytes) {
  bytes = bytes == 0 ? 256 : (bytes + 255) / 256 * 256;
  for (auto block = free_.begin(); block != free_.end(); ++block) {
    const auto [offset, size] = *block;
    if (size < bytes) continue;
    free_.erase(block);
    if (size > bytes) free_[offset + bytes] = size - bytes;
    used_[offset] = bytes;
    in_use_ += bytes;
    if (offset + bytes > peak_) peak_ = offset + bytes, peak_label_ = label_;
    return base_ + offset;
  }
  fail(fmt::format(
      "Slab: out of step memory on {}: op {} asked for {:.1f} MiB, {:.1f} of {:.1f} MiB are in use; "
      "use a smaller batch or model",
      to_string(device_), label_, bytes / 1048576.0, in_use_ / 1048576.0, capacity_ / 1048576.0));
}

void Slab::release(void* data) {
  const size_t offset = static_cast<size_t>(static_cast<std::byte*>(data) - base_);
  const auto used = used_.find(offset);
  const size_t size = used->second;
  used_.erase(used);
  in_use_ -= size;
  auto next = free_.upper_bound(offset);
  auto block = free_.emplace_hint(next, offset, size);
  if (next != free_.end() && offset + size == next->first) {  // merge with the neighbours
    block->second += next->second;
    free_.erase(next);
  }
  if (block != free_.begin()) {
    auto previous = std::prev(block);
    if (previous->first + previous->second == offset) {
      previous->second += block->second;
      free_.erase(block);
    }
  }
}

}  // namespace eigentrace
