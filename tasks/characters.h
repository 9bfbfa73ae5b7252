#pragma once
// Character vocabularies: Unicode code points by falling frequency, as IMDB and Retrieval read their texts.
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace eigentrace {

class CharacterVocabulary {
 public:
  /// Counts the first `limit` characters of a training text (valid UTF-8).
  void count(std::string_view text, int64_t limit);
  /// Fixes the ids: <pad> 0, <unk> 1, <eos> 2, then the characters counted at least `min_frequency` times, by
  /// falling frequency, ties by code point.
  void finish(int64_t min_frequency);
  /// Appends the ids of the first `limit` characters, then <eos>.
  void encode(std::string_view text, int64_t limit, std::vector<int32_t>& out) const;
  const std::vector<std::string>& symbols() const { return symbols_; }

 private:
  std::unordered_map<int32_t, int64_t> count_;
  std::unordered_map<int32_t, int32_t> id_;
  int32_t ascii_id_[128] = {};
  std::vector<std::string> symbols_;
};

}  // namespace eigentrace
