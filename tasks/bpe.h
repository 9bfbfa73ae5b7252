#pragma once
// GPT-2's byte-level byte-pair encoding (Radford et al. 2019), exact: encoder.json and vocab.bpe as
// published.
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace eigentrace {

class BpeTokenizer {
 public:
  /// From the texts of encoder.json (token string → id) and vocab.bpe (a version line, then one merge a line,
  /// first merge first). `where` names the folder in errors: not a flat object, an id twice, a byte without a
  /// token, a merge whose parts no earlier line has made.
  BpeTokenizer(std::string_view encoder_json, std::string_view vocab_bpe, const std::string& where);
  /// From a folder that holds both files.
  static BpeTokenizer from_folder(const std::filesystem::path& folder);

  /// Ids of pieces met before; optional, about twice as fast on running text. One for each thread.
  class Cache;

  /// Appends the ids of a UTF-8 text, special tokens being ordinary text. Errors: bytes that are no UTF-8.
  void encode(std::string_view text, std::vector<int32_t>& out, Cache* cache = nullptr) const;
  std::vector<int32_t> encode(std::string_view text) const;
  /// The bytes of the ids. Errors: an id without a token.
  std::string decode(const std::vector<int32_t>& ids) const;
  /// Largest id + 1.
  int64_t vocabulary() const { return static_cast<int64_t>(bytes_of_.size()); }
  /// The bytes of a token (empty if there is none).
  const std::string& bytes(int64_t id) const { return bytes_of_[id]; }

 private:
  struct Merge {
    int32_t rank, id;
  };
  void encode_piece(std::string_view piece, std::vector<int32_t>& out) const;
  const Merge* find_merge(int32_t left, int32_t right) const;

  std::vector<std::string> bytes_of_;
  int32_t byte_id_[256];
  std::unordered_map<uint64_t, Merge> merges_;
};

class BpeTokenizer::Cache {
  friend class BpeTokenizer;
  struct Hash : std::hash<std::string_view> {
    using is_transparent = void;
  };
  std::unordered_map<std::string, std::vector<int32_t>, Hash, std::equal_to<>> pieces_;
};

/// Length in bytes of the first piece of a non-empty UTF-8 text under the published splitting rule
/// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
size_t bpe_piece(std::string_view text);

}  // namespace eigentrace
