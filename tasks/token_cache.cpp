#include "tasks/token_cache.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <exception>

#include "tasks/files.h"
#include "tensor/error.h"

namespace eigentrace {

namespace {

constexpr char kMagic[8] = {'e', 't', 't', 'o', 'k', 'e', 'n', 's'};
constexpr uint64_t kFormat = 1;

struct Header {
  char magic[8];
  uint64_t format, key, lines, ids;
};

// White space as a language's strip() sees it: the property White_Space and the four separators 1C to 1F.
bool is_blank(std::string_view line) {
  const auto* s = reinterpret_cast<const utf8proc_uint8_t*>(line.data());
  for (utf8proc_ssize_t at = 0, n = static_cast<utf8proc_ssize_t>(line.size()); at < n;) {
    utf8proc_int32_t c = 0;
    at += utf8proc_iterate(s + at, n - at, &c);
    const bool space = (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
                       c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
                       c == 0x202F || c == 0x205F || c == 0x3000;
    if (!space) return false;
  }
  return true;
}

}  // namespace

TokenisedText tokenise_lines(std::string_view text, const BpeTokenizer& tokenizer, const std::string& file) {
  if (tokenizer.vocabulary() > 65536)
    fail(fmt::format("{}: vocabularies of more than 65,536 tokens have no cache format, found {}", file,
                     tokenizer.vocabulary()));
  std::vector<std::string_view> lines;
  for (std::string_view rest = text; !rest.empty();) {
    const size_t end = rest.find('\n');
    lines.push_back(rest.substr(0, end == std::string_view::npos ? end : end + 1));
    rest.remove_prefix(lines.back().size());
  }
  const int64_t n = static_cast<int64_t>(lines.size()), chunk = 1000, chunks = (n + chunk - 1) / chunk;
  TokenisedText out;
  out.lines.assign(n, 0);
  std::vector<std::vector<uint16_t>> ids(chunks);
  std::exception_ptr error;
#pragma omp parallel
  {
    BpeTokenizer::Cache cache;
    std::vector<int32_t> line_ids;
#pragma omp for schedule(dynamic)
    for (int64_t c = 0; c < chunks; ++c) {
      for (int64_t i = c * chunk; i < std::min(n, (c + 1) * chunk); ++i) {
        try {
          line_ids.clear();
          if (const int64_t bad = invalid_utf8(lines[i]); bad >= 0)
            fail(fmt::format(
                "{}: line {}: expected UTF-8, found byte 0x{:02x} at byte {} of the line; convert the file",
                file, i + 1, static_cast<unsigned char>(lines[i][bad]), bad));
          if (!is_blank(lines[i])) tokenizer.encode(lines[i], line_ids, &cache);
        } catch (...) {
#pragma omp critical
          error = std::current_exception();
        }
        out.lines[i] = static_cast<int32_t>(line_ids.size());
        ids[c].insert(ids[c].end(), line_ids.begin(), line_ids.end());
      }
    }
  }
  if (error) std::rethrow_exception(error);
  for (std::vector<uint16_t>& part : ids) {
    out.ids.insert(out.ids.end(), part.begin(), part.end());
    std::vector<uint16_t>().swap(part);
  }
  return out;
}

uint64_t digest(std::string_view bytes, uint64_t start) {
  uint64_t h = start ^ (0x9E3779B97F4A7C15ull + bytes.size());
  const auto mix = [&](uint64_t word) { h = std::rotl((h ^ word) * 0xD6E8FEB86659FD93ull, 31); };
  size_t i = 0;
  for (uint64_t word; i + 8 <= bytes.size(); i += 8) std::memcpy(&word, bytes.data() + i, 8), mix(word);
  uint64_t rest = 0;
  std::memcpy(&rest, bytes.data() + i, bytes.size() - i);
  mix(rest), mix(h >> 29);
  return h;
}

std::string write_tokens(const TokenisedText& text, uint64_t key) {
  Header header{{}, kFormat, key, text.lines.size(), text.ids.size()};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  std::string bytes(reinterpret_cast<const char*>(&header), sizeof header);
  bytes.append(reinterpret_cast<const char*>(text.lines.data()), text.lines.size() * sizeof(int32_t));
  bytes.append(reinterpret_cast<const char*>(text.ids.data()), text.ids.size() * sizeof(uint16_t));
  const uint64_t check = digest(bytes);
  bytes.append(reinterpret_cast<const char*>(&check), sizeof check);
  return bytes;
}

bool read_tokens(std::string_view bytes, uint64_t key, TokenisedText& text) {
  Header header;
  uint64_t check = 0;
  if (bytes.size() < sizeof header + sizeof check) return false;
  std::memcpy(&header, bytes.data(), sizeof header);
  const uint64_t room = bytes.size() - sizeof header - sizeof check;
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0 || header.format != kFormat || header.key != key)
    return false;
  if (header.lines > room / 4 || header.ids > room / 2 || header.lines * 4 + header.ids * 2 != room)
    return false;
  std::memcpy(&check, bytes.data() + bytes.size() - sizeof check, sizeof check);
  if (check != digest(bytes.substr(0, bytes.size() - sizeof check))) return false;
  text.lines.resize(header.lines), text.ids.resize(header.ids);
  const char* data = bytes.data() + sizeof header;  // copied byte by byte: a vector of none has no address
  std::copy_n(data, header.lines * 4, reinterpret_cast<char*>(text.lines.data()));
  std::copy_n(data + header.lines * 4, header.ids * 2, reinterpret_cast<char*>(text.ids.data()));
  int64_t total = 0;
  for (int32_t n : text.lines) {
    if (n < 0) return false;
    total += n;
  }
  return total == static_cast<int64_t>(header.ids);
}

std::filesystem::path default_cache_dir() {
  if (const char* xdg = std::getenv("XDG_CACHE_HOME"); xdg != nullptr && xdg[0])
    return std::filesystem::path(xdg) / "eigentrace";
  if (const char* home = std::getenv("HOME"); home != nullptr && home[0])
    return std::filesystem::path(home) / ".cache" / "eigentrace";
  return {};
}

}  // namespace eigentrace
