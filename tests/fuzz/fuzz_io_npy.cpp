// Any bytes: the reader either reads the array or throws an Error.
#include "tensor/io/npy.h"
#include "tests/fuzz/fuzz_io.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace eigentrace;
  static const FuzzFile file;
  file.fill(data, bytes);
  try {
    read_npy(file.path());
  } catch (const Error&) {}
  return 0;
}
