#pragma once
// The fuzzer's bytes as a file that lives in memory only.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>

#include "tensor/error.h"

namespace eigentrace {

class FuzzFile {
 public:
  FuzzFile() : fd_(::memfd_create("fuzz", 0)) {}
  void fill(const uint8_t* data, size_t bytes) const {
    if (::ftruncate(fd_, 0) != 0 || ::pwrite(fd_, data, bytes, 0) != ssize_t(bytes)) std::abort();
  }
  std::string path() const { return "/proc/self/fd/" + std::to_string(fd_); }

 private:
  int fd_;
};

}  // namespace eigentrace
