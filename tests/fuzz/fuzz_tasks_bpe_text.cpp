// Any text: encoding and decoding gives it back, with and without a cache; or it is no UTF-8. The tokeniser
// has merges of its own: all pairs of the lower-case letters of "abc ", then some of those.
#include <cstdlib>
#include <string>

#include "tasks/bpe.h"
#include "tensor/error.h"

namespace {

eigentrace::BpeTokenizer small_tokenizer() {
  std::string json = "{", merges = "#version: 0.2\n";
  int id = 0;
  const auto character = [](int c) {  // UTF-8 of a character below U+0800
    return c < 0x80 ? std::string(1, static_cast<char>(c))
                    : std::string{static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 0x3F))};
  };
  const auto token = [&](const std::string& written) {
    json += (id ? ", \"" : "\"") + written + "\": " + std::to_string(id);
    ++id;
  };
  for (int b = 0, next = 0x100; b < 256; ++b) {
    const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    const int c = printable ? b : next++;
    token(c == '"' || c == '\\' ? std::string("\\") + static_cast<char>(c) : character(c));
  }
  const std::string letters[] = {"a", "b", "c", character(0x120)};
  for (const std::string& x : letters)
    for (const std::string& y : letters) token(x + y), merges += x + " " + y + "\n";
  for (const std::string& x : letters) token("ab" + x + "c"), merges += "ab " + x + "c\n";
  return eigentrace::BpeTokenizer(json + "}", merges, "fuzz");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace eigentrace;
  static const BpeTokenizer tokenizer = small_tokenizer();
  const std::string text(reinterpret_cast<const char*>(data), bytes);
  try {
    BpeTokenizer::Cache cache;
    std::vector<int32_t> cached;
    const std::vector<int32_t> ids = tokenizer.encode(text);
    tokenizer.encode(text, cached, &cache);
    if (ids != cached || tokenizer.decode(ids) != text) std::abort();
  } catch (const Error&) {}
  return 0;
}
