#include "tasks/characters.h"

#include <utf8proc.h>

#include <algorithm>

#include "tasks/sequence_task.h"

namespace eigentrace {

namespace {

// Calls f with each of the first `limit` code points.
template <class F>
void for_each_character(std::string_view text, int64_t limit, F&& f) {
  const auto* s = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  const auto n = static_cast<utf8proc_ssize_t>(text.size());
  for (utf8proc_ssize_t at = 0; at < n && limit > 0; --limit) {
    utf8proc_int32_t c = s[at];
    at += c < 0x80 ? 1 : utf8proc_iterate(s + at, n - at, &c);
    f(c);
  }
}

}  // namespace

void CharacterVocabulary::count(std::string_view text, int64_t limit) {
  int64_t ascii[128] = {};
  for_each_character(text, limit, [&](int32_t c) {
    if (c < 128)
      ++ascii[c];
    else
      ++count_[c];
  });
  for (int32_t c = 0; c < 128; ++c)
    if (ascii[c] > 0) count_[c] += ascii[c];
}

void CharacterVocabulary::finish(int64_t min_frequency) {
  std::vector<std::pair<int32_t, int64_t>> order(count_.begin(), count_.end());
  std::erase_if(order, [&](const auto& entry) { return entry.second < min_frequency; });
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return a.second != b.second ? a.second > b.second : a.first < b.first;
  });
  symbols_ = {"<pad>", "<unk>", "<eos>"};
  std::fill(std::begin(ascii_id_), std::end(ascii_id_), kUnknown);
  for (const auto& [c, frequency] : order) {
    const int32_t id = static_cast<int32_t>(symbols_.size());
    if (c < 128)
      ascii_id_[c] = id;
    else
      id_[c] = id;
    utf8proc_uint8_t bytes[4];
    const auto n = utf8proc_encode_char(c, bytes);
    symbols_.emplace_back(reinterpret_cast<const char*>(bytes), static_cast<size_t>(n));
  }
}

void CharacterVocabulary::encode(std::string_view text, int64_t limit, std::vector<int32_t>& out) const {
  for_each_character(text, limit, [&](int32_t c) {
    if (c < 128) return out.push_back(ascii_id_[c]);
    const auto found = id_.find(c);
    out.push_back(found == id_.end() ? kUnknown : found->second);
  });
  out.push_back(kEnd);
}

}  // namespace eigentrace
