// Any bytes: the reader either reads every array or throws an Error.
#include "tensor/io/safetensors.h"
#include "tests/fuzz/fuzz_io.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace eigentrace;
  static const FuzzFile file;
  file.fill(data, bytes);
  try {
    const SafetensorsReader reader(file.path());
    for (const auto& [name, entry] : reader.entries()) {
      try {
        reader.read_widened(name);
      } catch (const Error&) {}
    }
    reader.verify_checksum();
  } catch (const Error&) {}
  return 0;
}
