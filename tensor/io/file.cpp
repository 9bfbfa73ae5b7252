#include "tensor/io/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "tensor/error.h"

namespace eigentrace {
namespace fs = std::filesystem;

IoFaults& io_faults() {
  static IoFaults faults;
  return faults;
}

namespace {

constexpr size_t buffer_bytes = size_t(1) << 18;

std::string why(int error) { return fmt::format("{} (errno {})", std::strerror(error), error); }

void kill_if_asked() {
  if (io_faults().kill) ::raise(SIGKILL);
}

/// `half_first`: the caller does half of its work before it calls kill_if_asked.
bool fault(bool half_first = false) {
  IoFaults& faults = io_faults();
  if (faults.calls++ != faults.fail_at) return false;
  if (!half_first) kill_if_asked();
  errno = faults.error;
  return true;
}

int open_checked(const char* path, int flags) {
  if ((flags & (O_WRONLY | O_RDWR)) && fault()) return -1;
  int fd;
  do fd = ::open(path, flags | O_CLOEXEC, 0666);
  while (fd < 0 && errno == EINTR);
  return fd;
}

/// Writes all bytes; false with errno set if some could not be written. `done` counts those that were.
bool write_all(int fd, const char* data, size_t bytes, size_t& done) {
  const bool faulty = fault(true);
  const int error = errno;
  if (faulty) bytes /= 2;
  for (done = 0; done < bytes;) {
    // Linux writes at most 0x7ffff000 bytes a call.
    const ssize_t n = ::write(fd, data + done, std::min(bytes - done, size_t(1) << 30));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return false;
    done += size_t(n);
  }
  if (!faulty) return true;
  kill_if_asked();
  errno = error;
  return false;
}

bool sync_file(int fd) { return !fault() && ::fsync(fd) == 0; }

/// Makes a rename or a new name in the folder last. Some file systems refuse to sync a folder: that is no
/// error.
bool sync_folder(const std::string& folder) {
  if (fault()) return false;
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return errno == EACCES;
  const bool ok = ::fsync(fd) == 0 || errno == EINVAL || errno == ENOTSUP;
  const int error = errno;
  ::close(fd);
  errno = error;
  return ok;
}

std::string folder_of(const std::string& path) {
  const std::string folder = fs::path(path).parent_path().string();
  return folder.empty() ? "." : folder;
}

/// Temporary files of writers that were killed stay behind: the next writer of the same path takes them away.
void remove_leftovers(const std::string& folder, const std::string& prefix) {
  std::error_code ignored;
  for (fs::directory_iterator it(folder, ignored), end; !ignored && it != end; it.increment(ignored)) {
    const std::string name = it->path().filename().string();
    if (name.rfind(prefix, 0) != 0) continue;
    const long pid = std::strtol(name.c_str() + prefix.size(), nullptr, 10);
    if (pid > 0 && ::kill(pid_t(pid), 0) != 0 && errno == ESRCH) ::unlink(it->path().c_str());
  }
}

/// Removes a temporary file and closes it, unless it was released.
struct Temporary {
  std::string path;
  int fd;
  bool keep = false;
  ~Temporary() {
    if (fd >= 0) ::close(fd);
    if (!keep) ::unlink(path.c_str());
  }
};

}  // namespace

void FileWriter::flush() {
  size_t done = 0;
  if (!buffer_.empty() && !write_all(fd_, buffer_.data(), buffer_.size(), done)) {
    const int error = errno;
    const uint64_t written = size_ - buffer_.size() + done;
    const uint64_t needed = std::max(expected_, size_);
    fail(fmt::format(
        "write_atomically: {}: {} after {} bytes; at least {} bytes are needed, {} of them still missing "
        "(the old file, if any, is unchanged)",
        path_, why(error), written, needed, needed - written));
  }
  buffer_.clear();
}

void FileWriter::write(const void* data, size_t bytes) {
  const char* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const size_t n = std::min(bytes, buffer_bytes - buffer_.size());
    buffer_.append(from, n);
    size_ += n;
    from += n;
    bytes -= n;
    if (buffer_.size() == buffer_bytes) flush();
  }
}

void write_atomically(const std::string& path, const std::function<void(FileWriter&)>& body,
                      uint64_t expected_bytes) {
  std::error_code code;
  std::string target = path;
  if (fs::is_symlink(path, code)) target = fs::weakly_canonical(path, code).string();
  const fs::file_status status = fs::status(target, code);
  if (fs::exists(status) && !fs::is_regular_file(status))
    fail(fmt::format(
        "write_atomically: path: expected a regular file or nothing at {}, found {}; choose another name",
        path, fs::is_directory(status) ? "a folder" : "a device, pipe or socket"));
  const std::string folder = folder_of(target);
  const std::string prefix = fmt::format(".{}.tmp-", fs::path(target).filename().string());
  remove_leftovers(folder, prefix);
  static std::atomic<unsigned> serial{0};
  const std::string beside = fmt::format("{}/{}{}-{}", folder, prefix, ::getpid(), serial++);

  const int fd = open_checked(beside.c_str(), O_WRONLY | O_CREAT | O_EXCL);
  if (fd < 0) {
    const int error = errno;
    fail(fmt::format("write_atomically: {}: cannot create a file in {}: {}", path, folder, why(error)));
  }
  Temporary temporary{beside, fd};
  FileWriter writer(fd, path, expected_bytes);
  body(writer);
  writer.flush();
  auto must = [&](bool ok, const char* what) {
    if (ok) return;
    const int error = errno;
    fail(fmt::format(
        "write_atomically: {}: {} failed: {}; {} bytes are needed (the old file, if any, is unchanged)", path,
        what, why(error), writer.size()));
  };
  if (fs::exists(status))
    must(::fchmod(fd, mode_t(status.permissions()) & 07777) == 0, "keeping the permissions");
  must(sync_file(fd), "writing to the disk");
  temporary.fd = -1;
  const bool lost = fault();  // network file systems report a full disk here
  const int error = errno;
  const bool closed = ::close(fd) == 0;
  if (lost) errno = error;
  must(closed && !lost, "closing");
  must(!fault() && ::rename(beside.c_str(), target.c_str()) == 0, "renaming into place");
  temporary.keep = true;
  if (!sync_folder(folder)) {
    const int error = errno;
    fail(fmt::format("write_atomically: {}: the new file is in place, but syncing its folder failed: {}",
                     path, why(error)));
  }
}

void write_atomically(const std::string& path, std::string_view text) {
  write_atomically(
      path, [&](FileWriter& file) { file.write(text); }, text.size());
}

AppendFile::AppendFile(const std::string& path) : path_(path) {
  fd_ = open_checked(path.c_str(), O_WRONLY | O_CREAT | O_APPEND);
  struct stat info;
  if (fd_ < 0 || ::fstat(fd_, &info) != 0) {
    const int error = errno;
    if (fd_ >= 0) ::close(fd_);
    fail(fmt::format("AppendFile: {}: cannot open for appending: {}", path, why(error)));
  }
  size_ = uint64_t(info.st_size);
}

AppendFile::AppendFile(const std::string& path, uint64_t keep_bytes) : AppendFile(path) {
  // The delegated constructor is done: from here on a throw runs the destructor.
  if (size_ < keep_bytes)
    fail(fmt::format(
        "AppendFile: {}: expected at least {} bytes to go on from, found {}; the file was cut or replaced",
        path, keep_bytes, size_));
  if (size_ > keep_bytes && (fault() || ::ftruncate(fd_, off_t(keep_bytes)) != 0)) {
    const int error = errno;
    fail(fmt::format("AppendFile: {}: cannot cut to {} bytes: {}", path, keep_bytes, why(error)));
  }
  size_ = keep_bytes;
}

AppendFile::AppendFile(AppendFile&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), size_(other.size_) {}

AppendFile::~AppendFile() {
  if (fd_ >= 0) ::close(fd_);
}

void AppendFile::append_line(std::string_view line) {
  if (line.find('\n') != std::string_view::npos)
    fail(fmt::format("AppendFile: {}: expected a line without a newline inside, found one at byte {}", path_,
                     line.find('\n')));
  append(std::string(line) + '\n');
}

void AppendFile::append(std::string_view text) {
  size_t done = 0;
  if (!write_all(fd_, text.data(), text.size(), done)) {
    const int error = errno;
    // Half a record would make the whole file unreadable; if this fails too, resuming cuts it off.
    [[maybe_unused]] const int ignored = ::ftruncate(fd_, off_t(size_));
    fail(fmt::format("AppendFile: {}: {}; {} bytes were needed", path_, why(error), text.size()));
  }
  size_ += text.size();
}

void AppendFile::sync() {
  if (sync_file(fd_)) return;
  const int error = errno;
  fail(fmt::format("AppendFile: {}: writing to the disk failed: {}", path_, why(error)));
}

InputFile::InputFile(const std::string& path) : path_(path) {
  fd_ = open_checked(path.c_str(), O_RDONLY);
  struct stat info;
  if (fd_ < 0 || ::fstat(fd_, &info) != 0) {
    const int error = errno;
    if (fd_ >= 0) ::close(fd_);
    fail(fmt::format("InputFile: {}: cannot open: {}", path, why(error)));
  }
  if (!S_ISREG(info.st_mode)) {
    ::close(fd_);
    fail(fmt::format("InputFile: {}: expected a regular file, found a {}", path,
                     S_ISDIR(info.st_mode) ? "folder" : "device"));
  }
  size_ = uint64_t(info.st_size);
}

InputFile::InputFile(InputFile&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), size_(other.size_) {}

InputFile::~InputFile() {
  if (fd_ >= 0) ::close(fd_);
}

void InputFile::read_at(uint64_t offset, void* to, size_t bytes) const {
  if (offset > size_ || bytes > size_ - offset)
    fail(fmt::format(
        "InputFile: {}: expected {} bytes at offset {}, found a file of {} bytes; it is cut short", path_,
        bytes, offset, size_));
  char* out = static_cast<char*>(to);
  for (size_t done = 0; done < bytes;) {
    const ssize_t n = ::pread(fd_, out + done, std::min(bytes - done, size_t(1) << 30), off_t(offset + done));
    if (n < 0 && errno == EINTR) continue;
    const int error = errno;
    if (n < 0)
      fail(fmt::format("InputFile: {}: reading {} bytes at offset {}: {}", path_, bytes, offset, why(error)));
    if (n == 0)
      fail(fmt::format("InputFile: {}: was cut short while being read (at byte {})", path_, offset + done));
    done += size_t(n);
  }
}

std::string read_file(const std::string& path, uint64_t max_bytes) {
  const InputFile file(path);
  if (file.size() > max_bytes)
    fail(fmt::format("read_file: {}: expected at most {} bytes, found {}", path, max_bytes, file.size()));
  std::string text(file.size(), '\0');
  file.read_at(0, text.data(), text.size());
  return text;
}

void ensure_directory(const std::string& path) {
  std::error_code code;
  fs::create_directories(path, code);
  if (!fs::is_directory(path))
    fail(fmt::format("ensure_directory: {}: expected a folder or nothing, cannot make it: {}", path,
                     code ? code.message() : "something else is in the way"));
}

uint32_t crc32(const void* data, size_t bytes, uint32_t crc) {
  if (bytes == 0) return crc;  // zlib takes a null pointer for "start anew"
  return uint32_t(::crc32_z(crc, static_cast<const Bytef*>(data), bytes));
}

}  // namespace eigentrace
