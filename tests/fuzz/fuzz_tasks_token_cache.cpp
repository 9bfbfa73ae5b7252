// Any bytes: a whole cache of the right key, or not used. What is used has as many ids as its lines say.
#include <cstdlib>
#include <cstring>
#include <string>

#include "tasks/token_cache.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace eigentrace;
  std::string file(reinterpret_cast<const char*>(data), bytes);
  TokenisedText text;
  read_tokens(file, 0, text);
  if (bytes < 8) return 0;
  // With the digest made right, the header and the counts are all that stands against the bytes.
  const uint64_t check = digest(std::string_view(file).substr(0, bytes - 8));
  std::memcpy(file.data() + bytes - 8, &check, 8);
  uint64_t key = 0;
  if (bytes >= 24) std::memcpy(&key, data + 16, 8);
  if (!read_tokens(file, key, text)) return 0;
  int64_t total = 0;
  for (int32_t n : text.lines) total += n;
  if (total != static_cast<int64_t>(text.ids.size())) std::abort();
  return 0;
}
