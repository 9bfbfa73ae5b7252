#include "tasks/files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "tensor/error.h"

namespace eigentrace {

namespace {

struct Descriptor {
  explicit Descriptor(int descriptor) : fd(descriptor) {}
  ~Descriptor() {
    if (fd >= 0) close(fd);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int fd;
};

}  // namespace

void fail_data(const std::filesystem::path& file, const std::string& problem, const DataSource& source) {
  std::string message = fmt::format("{}: {}", file.string(), problem);
  if (source.url[0])
    message +=
        fmt::format("; the data set is published at {}; place {} below data_dir", source.url, source.layout);
  if (source.name[0]) message += fmt::format(", or run: tools/download_data.sh {}", source.name);
  fail(message);
}

std::string read_file(const std::filesystem::path& file, const DataSource& source) {
  const Descriptor in(open(file.c_str(), O_RDONLY | O_CLOEXEC));
  if (in.fd < 0) fail_data(file, fmt::format("cannot be opened ({})", std::strerror(errno)), source);
  struct stat info {};
  if (fstat(in.fd, &info) != 0 || !S_ISREG(info.st_mode))
    fail_data(file, "expected a file, found none", source);
  std::string bytes(static_cast<size_t>(info.st_size), '\0');
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = read(in.fd, bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_data(file, fmt::format("cannot be read ({})", std::strerror(errno)), source);
    if (n == 0) break;  // it became shorter meanwhile
    done += static_cast<size_t>(n);
  }
  bytes.resize(done);
  return bytes;
}

std::filesystem::path find_data(const std::string& data_dir, const std::vector<std::string>& candidates,
                                const DataSource& source) {
  for (const std::string& candidate : candidates) {
    const std::filesystem::path path = std::filesystem::path(data_dir) / candidate;
    std::error_code ignored;
    if (std::filesystem::exists(path, ignored)) return path;
  }
  fail_data(
      std::filesystem::path(data_dir.empty() ? "." : data_dir),
      fmt::format("data_dir: expected {} in this folder, found none of them", fmt::join(candidates, " or ")),
      source);
}

void write_file(const std::filesystem::path& file, std::string_view bytes) {
  std::error_code ignored;
  if (file.has_parent_path()) std::filesystem::create_directories(file.parent_path(), ignored);
  const std::string beside = fmt::format("{}.{}.part", file.string(), getpid());
  const auto give_up = [&](const char* what) {
    const int reason = errno;
    unlink(beside.c_str());
    fail(fmt::format("{}: cannot be {} ({}); is the folder writable and the disk not full?", file.string(),
                     what, std::strerror(reason)));
  };
  {
    const Descriptor out(open(beside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    if (out.fd < 0) give_up("created");
    size_t done = 0;
    while (done < bytes.size()) {
      const ssize_t n = write(out.fd, bytes.data() + done, bytes.size() - done);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) give_up("written");
      done += static_cast<size_t>(n);
    }
    if (fsync(out.fd) != 0) give_up("written");
  }
  if (rename(beside.c_str(), file.c_str()) != 0) give_up("put in place");
}

std::vector<std::string_view> split_lines(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    lines.push_back(line);
    if (end == std::string_view::npos) break;
    text.remove_prefix(end + 1);
  }
  return lines;
}

std::vector<std::string_view> split_tabs(std::string_view line) {
  std::vector<std::string_view> fields;
  for (;;) {
    const size_t end = line.find('\t');
    fields.push_back(line.substr(0, end));
    if (end == std::string_view::npos) return fields;
    line.remove_prefix(end + 1);
  }
}

int64_t invalid_utf8(std::string_view text) {
  const auto* s = reinterpret_cast<const unsigned char*>(text.data());
  const size_t n = text.size();
  for (size_t i = 0; i < n;) {
    const unsigned c = s[i];
    const size_t length = c < 0x80 ? 1 : c < 0xC2 ? 0 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : c < 0xF5 ? 4 : 0;
    if (length == 0 || i + length > n) return static_cast<int64_t>(i);
    for (size_t k = 1; k < length; ++k)
      if ((s[i + k] & 0xC0) != 0x80) return static_cast<int64_t>(i);
    if ((c == 0xE0 && s[i + 1] < 0xA0) || (c == 0xED && s[i + 1] > 0x9F) || (c == 0xF0 && s[i + 1] < 0x90) ||
        (c == 0xF4 && s[i + 1] > 0x8F))
      return static_cast<int64_t>(i);
    i += length;
  }
  return -1;
}

}  // namespace eigentrace
