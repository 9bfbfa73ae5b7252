// Any two texts as encoder.json and vocab.bpe (split at the first zero byte): a tokeniser or an Error.
#include <string_view>

#include "tasks/bpe.h"
#include "tensor/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace eigentrace;
  const std::string_view text(reinterpret_cast<const char*>(data), bytes);
  const size_t cut = text.find('\0');
  try {
    const BpeTokenizer tokenizer(text.substr(0, cut), cut == text.npos ? "" : text.substr(cut + 1), "fuzz");
    tokenizer.decode(tokenizer.encode("some text"));
  } catch (const Error&) {}
  return 0;
}
