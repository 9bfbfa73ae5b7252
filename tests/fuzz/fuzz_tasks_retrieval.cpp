// Any bytes: rows of valid UTF-8, whose characters can be counted and encoded, or an Error.
#include <string_view>

#include "tasks/characters.h"
#include "tasks/retrieval.h"
#include "tensor/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace eigentrace;
  try {
    const auto rows = parse_retrieval_tsv({reinterpret_cast<const char*>(data), bytes}, "fuzz");
    CharacterVocabulary vocabulary;
    for (const RetrievalRow& row : rows) vocabulary.count(row.text[0], 20);
    vocabulary.finish(1);
    std::vector<int32_t> ids;
    for (const RetrievalRow& row : rows) vocabulary.encode(row.text[1], 20, ids);
  } catch (const Error&) {}
  return 0;
}
