// Any bytes: the reader either reads every tensor or throws an Error. Bytes that do not begin as a zip are
// taken for the pickle of one with two storages: checksums would keep a fuzzer from ever changing it.
#include "tensor/io/pth.h"
#include "tests/fuzz/fuzz_io.h"
#include "tests/pth_testing.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace eigentrace;
  static const FuzzFile file;
  std::string text(reinterpret_cast<const char*>(data), bytes);
  if (!text.starts_with("PK")) text = pth_of(text, {std::string(24, '\1'), std::string(16, '\2')});
  file.fill(reinterpret_cast<const uint8_t*>(text.data()), text.size());
  try {
    read_pth(file.path(), 1 << 20);
  } catch (const Error&) {}
  return 0;
}
