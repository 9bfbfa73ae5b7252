#include "tasks/bpe.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <queue>
#include <tuple>

#include "tasks/files.h"
#include "tensor/error.h"

namespace eigentrace {

namespace {

constexpr DataSource kSource{"gpt2", "https://openaipublic.blob.core.windows.net/gpt-2/models/124M",
                             "encoder.json and vocab.bpe (in data_dir, or in data_dir/gpt2)"};
constexpr size_t kCachedPieces = 1 << 17, kCachedLength = 64;

// The files write bytes as characters: printable ones stand for themselves, the others, in order, for U+0100
// onwards.
std::array<int, 0x200> byte_of_character() {
  std::array<int, 0x200> byte;
  byte.fill(-1);
  int next = 0x100;
  for (int b = 0; b < 256; ++b) {
    const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    byte[printable ? b : next++] = b;
  }
  return byte;
}

// A token as the files write it, in UTF-8, back to its bytes; false if a character stands for none.
bool to_bytes(std::string_view written, std::string& bytes) {
  static const std::array<int, 0x200> byte = byte_of_character();
  bytes.clear();
  for (size_t i = 0; i < written.size();) {
    unsigned c = static_cast<unsigned char>(written[i++]);
    if (c >= 0x80) {  // U+0080..U+01FF are two bytes long; nothing else has a meaning
      if ((c & 0xE0) != 0xC0 || i == written.size()) return false;
      c = (c & 0x1F) << 6 | (static_cast<unsigned char>(written[i++]) & 0x3F);
    }
    if (c >= byte.size() || byte[c] < 0) return false;
    bytes += static_cast<char>(byte[c]);
  }
  return !bytes.empty();
}

// Reads the one form of JSON encoder.json has: an object whose values are integers.
class ObjectReader {
 public:
  ObjectReader(std::string_view text, std::string where) : text_(text), where_(std::move(where)) {}

  template <class F>
  void read(F&& entry) {
    expect('{');
    if (peek() == '}') return;
    for (;;) {
      const std::string key = string();
      expect(':');
      entry(key, integer());
      if (peek() != ',') break;
      ++at_;
    }
    expect('}');
    if (peek() != '\0') wrong("the end of the file");
  }

 private:
  [[noreturn]] void wrong(const std::string& expected) const {
    fail(fmt::format("{}: byte {}: expected {}; the file must be one JSON object of token strings and ids",
                     where_, at_, expected));
  }
  char peek() {
    while (at_ < text_.size() && std::strchr(" \t\r\n", text_[at_]) != nullptr && text_[at_] != '\0') ++at_;
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  void expect(char c) {
    if (peek() != c) wrong(fmt::format("'{}'", c));
    ++at_;
  }
  int64_t integer() {
    peek();
    int64_t value = 0;
    const char *begin = text_.data() + at_, *end = text_.data() + text_.size();
    const auto [stop, error] = std::from_chars(begin, end, value);
    if (error != std::errc()) wrong("an integer");
    at_ += static_cast<size_t>(stop - begin);
    return value;
  }
  unsigned hex4() {
    unsigned value = 0;
    if (at_ + 4 > text_.size()) wrong("four hexadecimal digits");
    const auto [stop, error] = std::from_chars(text_.data() + at_, text_.data() + at_ + 4, value, 16);
    if (error != std::errc() || stop != text_.data() + at_ + 4) wrong("four hexadecimal digits");
    at_ += 4;
    return value;
  }
  std::string string() {
    expect('"');
    std::string out;
    for (;;) {
      if (at_ >= text_.size()) wrong("the end of a string");
      const char c = text_[at_++];
      if (c == '"') return out;
      if (c != '\\') {
        out += c;
        continue;
      }
      if (at_ >= text_.size()) wrong("an escape");
      const char escape = text_[at_++];
      static constexpr char kFrom[] = "\"\\/bfnrt", kTo[] = "\"\\/\b\f\n\r\t";
      if (escape == 'u') {
        const unsigned code = hex4();  // tokens have none above U+01FF
        if (code < 0x80) {
          out += static_cast<char>(code);
        } else if (code < 0x800) {
          out += static_cast<char>(0xC0 | code >> 6), out += static_cast<char>(0x80 | (code & 0x3F));
        } else {
          wrong("a character below U+0800");
        }
      } else if (const char* found = std::strchr(kFrom, escape); found != nullptr && escape != '\0') {
        out += kTo[found - kFrom];
      } else {
        wrong("an escape");
      }
    }
  }

  std::string_view text_;
  std::string where_;
  size_t at_ = 0;
};

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

BpeTokenizer::BpeTokenizer(std::string_view encoder_json, std::string_view vocab_bpe,
                           const std::string& where) {
  const std::string encoder_name = where + "/encoder.json", merges_name = where + "/vocab.bpe";
  std::unordered_map<std::string, int32_t> id_of;
  ObjectReader(encoder_json, encoder_name).read([&](const std::string& written, int64_t id) {
    std::string bytes;
    if (id < 0 || id >= 1 << 20)
      fail(fmt::format("{}: token '{}': expected an id below 2^20, found {}", encoder_name, written, id));
    if (!to_bytes(written, bytes))
      fail(fmt::format("{}: token '{}' (id {}) holds a character that stands for no byte", encoder_name,
                       written, id));
    if (static_cast<size_t>(id) >= bytes_of_.size()) bytes_of_.resize(id + 1);
    if (!bytes_of_[id].empty() || !id_of.emplace(bytes, static_cast<int32_t>(id)).second)
      fail(fmt::format("{}: token '{}' or its id {} stands there twice", encoder_name, written, id));
    bytes_of_[id] = bytes;
  });
  std::vector<bool> made(bytes_of_.size(), false);  // tokens the merges so far can make
  for (int b = 0; b < 256; ++b) {
    const auto found = id_of.find(std::string(1, static_cast<char>(b)));
    if (found == id_of.end())
      fail(fmt::format("{}: expected a token for each byte, found none for {}", encoder_name, b));
    byte_id_[b] = found->second;
    made[found->second] = true;
  }
  const std::vector<std::string_view> lines = split_lines(vocab_bpe);
  const bool versioned = !lines.empty() && lines[0].starts_with("#version");
  int32_t rank = 0;
  std::string left, right;
  for (size_t i = versioned ? 1 : 0; i < lines.size(); ++i) {
    if (lines[i].empty()) continue;
    const auto wrong = [&](const std::string& problem) {
      fail(fmt::format("{}: line {}: {}; the file must hold the published merges in their order", merges_name,
                       i + 1, problem));
    };
    const size_t blank = lines[i].find(' ');
    if (blank == std::string_view::npos || !to_bytes(lines[i].substr(0, blank), left) ||
        !to_bytes(lines[i].substr(blank + 1), right))
      wrong("expected two tokens with a blank between");
    const auto a = id_of.find(left), b = id_of.find(right), merged = id_of.find(left + right);
    if (a == id_of.end() || b == id_of.end() || merged == id_of.end())
      wrong("a token that encoder.json does not have");
    if (!made[a->second] || !made[b->second]) wrong("a merge of a token that only a later line makes");
    if (!merges_.emplace(pair_key(a->second, b->second), Merge{rank++, merged->second}).second)
      wrong("a merge that stands there twice");
    made[merged->second] = true;
  }
  if (merges_.empty()) fail(fmt::format("{}: expected merges, found none", merges_name));
}

BpeTokenizer BpeTokenizer::from_folder(const std::filesystem::path& folder) {
  const std::string encoder = read_data(folder / "encoder.json", kSource);
  return BpeTokenizer(encoder, read_data(folder / "vocab.bpe", kSource), folder.string());
}

const BpeTokenizer::Merge* BpeTokenizer::find_merge(int32_t left, int32_t right) const {
  const auto found = merges_.find(pair_key(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

// Merges the pair of lowest rank, the leftmost first, until none is left. A merge makes a token that only
// later merges use, so a heap meets the pairs in the order the published loop does, in O(n log n).
void BpeTokenizer::encode_piece(std::string_view piece, std::vector<int32_t>& out) const {
  const int32_t n = static_cast<int32_t>(piece.size());
  thread_local std::vector<int32_t> id, next, previous;
  id.resize(n), next.resize(n), previous.resize(n);
  struct Candidate {
    int32_t rank, left, id;
    bool operator>(const Candidate& o) const { return std::tie(rank, left) > std::tie(o.rank, o.left); }
  };
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> heap;
  for (int32_t i = 0; i < n; ++i) {
    id[i] = byte_id_[static_cast<unsigned char>(piece[i])];
    next[i] = i + 1, previous[i] = i - 1;
  }
  const auto offer = [&](int32_t left) {
    if (left < 0 || next[left] >= n) return;
    if (const Merge* m = find_merge(id[left], id[next[left]])) heap.push({m->rank, left, m->id});
  };
  for (int32_t i = 0; i + 1 < n; ++i) offer(i);
  while (!heap.empty()) {
    const Candidate top = heap.top();
    heap.pop();
    // A candidate is stale once one of its parts has been merged into something else.
    if (id[top.left] < 0 || next[top.left] >= n) continue;
    const Merge* m = find_merge(id[top.left], id[next[top.left]]);
    if (m == nullptr || m->rank != top.rank) continue;
    const int32_t right = next[top.left];
    id[top.left] = top.id, id[right] = -1;
    next[top.left] = next[right];
    if (next[right] < n) previous[next[right]] = top.left;
    offer(previous[top.left]);
    offer(top.left);
  }
  for (int32_t i = 0; i < n; i = next[i]) out.push_back(id[i]);
}

void BpeTokenizer::encode(std::string_view text, std::vector<int32_t>& out, Cache* cache) const {
  if (const int64_t bad = invalid_utf8(text); bad >= 0)
    fail(fmt::format("encode: text: expected UTF-8, found byte 0x{:02x} at {}; convert the file to UTF-8",
                     static_cast<unsigned char>(text[bad]), bad));
  if (text.size() > INT32_MAX) fail("encode: text: expected less than 2 GB; encode it in parts");
  while (!text.empty()) {
    const std::string_view piece = text.substr(0, bpe_piece(text));
    text.remove_prefix(piece.size());
    if (cache == nullptr || piece.size() > kCachedLength) {
      encode_piece(piece, out);
      continue;
    }
    auto found = cache->pieces_.find(piece);
    if (found == cache->pieces_.end()) {
      if (cache->pieces_.size() >= kCachedPieces) cache->pieces_.clear();
      std::vector<int32_t> ids;
      encode_piece(piece, ids);
      found = cache->pieces_.emplace(std::string(piece), std::move(ids)).first;
    }
    out.insert(out.end(), found->second.begin(), found->second.end());
  }
}

std::vector<int32_t> BpeTokenizer::encode(std::string_view text) const {
  std::vector<int32_t> ids;
  encode(text, ids);
  return ids;
}

std::string BpeTokenizer::decode(const std::vector<int32_t>& ids) const {
  std::string text;
  for (int32_t id : ids) {
    if (id < 0 || id >= vocabulary() || bytes_of_[id].empty())
      fail(fmt::format("decode: ids: expected ids of the {} tokens, found {}", vocabulary(), id));
    text += bytes_of_[id];
  }
  return text;
}

}  // namespace eigentrace
