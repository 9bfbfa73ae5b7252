#include <sys/mman.h>

#include <map>
#include <mutex>

#include "tests/simt/simt.h"

namespace simt {
namespace {

constexpr size_t arena_bytes = size_t{64} << 30;  // address space; only touched pages count

struct Arena {
  std::mutex mutex;
  unsigned char* base;
  size_t extent = 0;  // what has ever been handed out, from the base
  int users = 0;
  std::map<size_t, size_t> used;  // offset → size
  Arena()
      : base(static_cast<unsigned char*>(
            mmap(nullptr, arena_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))) {}
};
Arena& arena() {
  static Arena* one = new Arena;  // outlives every static that frees device memory
  return *one;
}

}  // namespace

void* device_malloc(size_t bytes) {
  Arena& a = arena();
  const std::lock_guard lock(a.mutex);
  bytes = (bytes + 4095) / 4096 * 4096 + 4096;  // a page between allocations that nobody owns
  size_t at = 0;
  for (const auto& [offset, size] : a.used) {
    if (offset - at >= bytes) break;
    at = offset + size;
  }
  if (at + bytes > arena_bytes) return nullptr;
  a.used[at] = bytes;
  if (at + bytes > a.extent) a.extent = at + bytes;
  if (a.users > 0) mprotect(a.base + at, bytes, PROT_READ | PROT_WRITE);
  return a.base + at;
}

bool device_free(void* data) {
  Arena& a = arena();
  const std::lock_guard lock(a.mutex);
  const auto found = a.used.find(static_cast<size_t>(static_cast<unsigned char*>(data) - a.base));
  if (found == a.used.end()) return false;
  madvise(a.base + found->first, found->second, MADV_DONTNEED);
  a.used.erase(found);
  return true;
}

DeviceAccess::DeviceAccess() {
  Arena& a = arena();
  const std::lock_guard lock(a.mutex);
  if (a.users++ == 0 && a.extent > 0) mprotect(a.base, a.extent, PROT_READ | PROT_WRITE);
}

DeviceAccess::~DeviceAccess() {
  Arena& a = arena();
  const std::lock_guard lock(a.mutex);
  if (--a.users == 0 && a.extent > 0) mprotect(a.base, a.extent, PROT_NONE);
}

}  // namespace simt
