#pragma once
// Files that are either complete or absent. Every write is checked; every error names the path and the cause.
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>

namespace eigentrace {

/// Where write_atomically's body puts its bytes: buffered, checked.
class FileWriter {
 public:
  void write(const void* data, size_t bytes);
  void write(std::span<const std::byte> bytes) { write(bytes.data(), bytes.size()); }
  void write(std::string_view text) { write(text.data(), text.size()); }
  uint64_t size() const { return size_; }  ///< bytes written so far

 private:
  friend void write_atomically(const std::string&, const std::function<void(FileWriter&)>&, uint64_t);
  FileWriter(int fd, const std::string& path, uint64_t expected)
      : fd_(fd), path_(path), expected_(expected) {}
  void flush();
  int fd_;
  const std::string& path_;
  uint64_t expected_;
  uint64_t size_ = 0;
  std::string buffer_;
};

/// Runs body on a temporary file beside path, syncs it and renames it to path: a reader sees the old file or
/// the new one, whatever happens in between. On any exception the old file is untouched and the temporary one
/// gone. expected_bytes (0: unknown) only makes the message of a full disk say how much is needed. Errors:
/// path is not a regular file; the system's own (disk full, no permission), with the path and the bytes
/// written.
void write_atomically(const std::string& path, const std::function<void(FileWriter&)>& body,
                      uint64_t expected_bytes = 0);
void write_atomically(const std::string& path, std::string_view text);

/// A growing file of lines (JSONL): one write(2) a line, so that a line is there whole or not at all.
class AppendFile {
 public:
  explicit AppendFile(const std::string& path);  ///< goes on after what the file holds
  AppendFile(const std::string& path,
             uint64_t keep_bytes);  ///< resume: cuts to keep_bytes; Error if the file is shorter
  AppendFile(AppendFile&& other) noexcept;
  AppendFile& operator=(AppendFile&&) = delete;
  ~AppendFile();
  void append_line(std::string_view line);  ///< line without its newline; Error if it has one inside
  void append(std::string_view bytes);      ///< all of them or, with an Error, none
  void sync();                              ///< onto the disk (fsync)
  uint64_t size() const { return size_; }   ///< bytes, to be kept in a checkpoint for resuming

 private:
  std::string path_;
  int fd_ = -1;
  uint64_t size_ = 0;
};

/// A file open for reading at any offset. It is read, not mapped: a file cut short meanwhile is an Error, not
/// a SIGBUS.
class InputFile {
 public:
  explicit InputFile(const std::string& path);
  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&&) = delete;
  ~InputFile();
  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }
  void read_at(uint64_t offset, void* to, size_t bytes) const;  ///< Error unless all the bytes are there

 private:
  std::string path_;
  int fd_ = -1;
  uint64_t size_ = 0;
};

/// The whole file; Error if it holds more than max_bytes.
std::string read_file(const std::string& path, uint64_t max_bytes = uint64_t(1) << 30);

/// Makes the folder and its parents; Error if something else is in the way.
void ensure_directory(const std::string& path);

/// CRC-32 (ISO 3309, as in zip) of data, continued from crc.
uint32_t crc32(const void* data, size_t bytes, uint32_t crc = 0);

/// For tests: the fail_at-th system call that changes a file (open, write, sync, close, rename, cut), counted
/// from 0, fails with `error`; a failing write first writes half of its bytes, as a full disk does.
/// fail_at < 0: none fails.
struct IoFaults {
  std::atomic<int64_t> fail_at = -1;
  std::atomic<int> error = 28;     // ENOSPC
  std::atomic<bool> kill = false;  // instead of failing, SIGKILL ends the program there
  std::atomic<int64_t> calls = 0;  // counted so far
};
IoFaults& io_faults();  ///< the whole program's

}  // namespace eigentrace
