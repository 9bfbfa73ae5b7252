#pragma once
// Step memory: one block with a deterministic first-fit free list.
#include <cstddef>
#include <map>
#include <memory>
#include <string>

#include "tensor/device.h"

namespace eigentrace {

/// One block of memory handed out in pieces. The same sequence of requests gives the same addresses, which is
/// what capturing a step needs. Pieces are 256-byte aligned. Not thread-safe: one thread builds a step.
class Slab {
 public:
  /// Reserves `capacity` bytes. On the CPU only touched pages cost memory.
  /// `dry`: nothing is reserved; addresses are handed out and counted, but must not be touched.
  Slab(Device device, size_t capacity, bool dry = false);
  ~Slab();
  Slab(const Slab&) = delete;
  Slab& operator=(const Slab&) = delete;

  /// First fit. Error: out of memory, naming the size, what is in use and the op (`label`) that asked.
  void* allocate(size_t bytes);
  void release(void* data);

  Device device() const { return device_; }
  size_t capacity() const { return capacity_; }
  size_t in_use() const { return in_use_; }
  /// Largest extent reached since the last reset_peak: the capacity that this sequence of requests needs.
  size_t peak() const { return peak_; }
  const std::string& peak_label() const { return peak_label_; }
  void reset_peak() { peak_ = 0, peak_label_.clear(); }
  /// Names the op whose requests follow; reported with the peak.
  void set_label(std::string label) { label_ = std::move(label); }

 private:
  Device device_;
  size_t capacity_, in_use_ = 0, peak_ = 0;
  bool dry_;
  std::byte* base_ = nullptr;
  std::string label_, peak_label_;
  std::map<size_t, size_t> free_, used_;  // offset → size
};

}  // namespace eigentrace
