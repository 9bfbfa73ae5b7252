#pragma once
// A folder of its own for each test, and what tests of file formats share.
#include <doctest/doctest.h>
#include <stdlib.h>

#include <cerrno>
#include <filesystem>
#include <functional>
#include <string>

#include "tensor/error.h"
#include "tensor/io/file.h"

namespace eigentrace {

struct TestFolder {
  std::string path;
  TestFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "eigentrace-test-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~TestFolder() { std::filesystem::remove_all(path); }
  std::string operator/(const std::string& name) const { return path + "/" + name; }
  size_t files() const {
    size_t n = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(path)) n++;
    return n;
  }
};

/// The message of the Error that action throws; "" if it throws none.
inline std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// Runs write once with every one of its system calls failing in turn: each time it must throw, keep the old
/// content and leave nothing behind. Returns how many calls there were. (The last one syncs the folder: the
/// new file is in place then.)
inline int64_t fail_every_call(const TestFolder& folder, const std::string& path,
                               const std::function<void()>& write) {
  IoFaults& faults = io_faults();
  faults.calls = 0;
  write();
  const int64_t calls = faults.calls;
  const std::string fresh = read_file(path);
  for (int64_t k = 0; k < calls; k++) {
    CAPTURE(k);
    write_atomically(path, "old content");
    faults.calls = 0;
    faults.fail_at = k;
    faults.error = k % 2 ? EIO : ENOSPC;
    const std::string message = error_of(write);
    faults.fail_at = -1;
    CHECK(contains(message, path));
    CHECK(contains(message, k % 2 ? "Input/output error" : "No space left on device"));
    CHECK(contains(message, "bytes") == (k > 0 && k < calls - 1));
    CHECK(read_file(path) == (k == calls - 1 ? fresh : "old content"));
    CHECK(folder.files() == 1);
  }
  return calls;
}

}  // namespace eigentrace
