#pragma once
// A text file as tokens, line by line, made once and kept on disk.
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "tasks/bpe.h"

namespace eigentrace {

struct TokenisedText {
  std::vector<int32_t> lines;  ///< tokens of each line; 0 for a line of white space
  std::vector<uint16_t> ids;   ///< all tokens (vocabularies up to 65,536)
};

/// Encodes each line by itself (line feed kept), on all threads. Errors: no UTF-8 (file, line and byte are
/// named).
TokenisedText tokenise_lines(std::string_view text, const BpeTokenizer& tokenizer, const std::string& file);

/// A 64-bit digest of bytes, to recognise a file again (not against forgery).
uint64_t digest(std::string_view bytes, uint64_t start = 0);

/// The form on disk: magic, format number, key, counts, data, digest of all before.
std::string write_tokens(const TokenisedText& text, uint64_t key);
/// False if `bytes` is anything but a whole file of this format and key.
bool read_tokens(std::string_view bytes, uint64_t key, TokenisedText& text);

/// The folder of caches: $XDG_CACHE_HOME/eigentrace or ~/.cache/eigentrace; empty if there is no home.
std::filesystem::path default_cache_dir();

}  // namespace eigentrace
