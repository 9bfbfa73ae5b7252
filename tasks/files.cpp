#include "tasks/files.h"

#include <fmt/format.h>

#include "tensor/error.h"
#include "tensor/io/file.h"

namespace eigentrace {

void fail_data(const std::filesystem::path& file, const std::string& problem, const DataSource& source) {
  std::string message = fmt::format("{}: {}", file.string(), problem);
  if (source.url[0])
    message +=
        fmt::format("; the data set is published at {}; place {} below data_dir", source.url, source.layout);
  if (source.name[0]) message += fmt::format(", or run: tools/download_data.sh {}", source.name);
  fail(message);
}

std::string read_data(const std::filesystem::path& file, const DataSource& source) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(file, ignored))
    fail_data(file, "expected a file, found none", source);
  return read_file(file.string(), uint64_t{1} << 36);
}

std::filesystem::path find_data(const std::string& data_dir, const std::vector<std::string>& candidates,
                                const DataSource& source) {
  for (const std::string& candidate : candidates) {
    std::filesystem::path path = std::filesystem::path(data_dir) / candidate;
    std::error_code ignored;
    if (std::filesystem::exists(path, ignored)) return path;
  }
  fail_data(
      std::filesystem::path(data_dir.empty() ? "." : data_dir),
      fmt::format("data_dir: expected {} in this folder, found none of them", fmt::join(candidates, " or ")),
      source);
}

void write_file(const std::filesystem::path& file, std::string_view bytes) {
  if (file.has_parent_path()) ensure_directory(file.parent_path().string());
  write_atomically(file.string(), bytes);
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
