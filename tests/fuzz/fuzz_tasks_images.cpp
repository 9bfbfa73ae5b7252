// Any bytes as CIFAR-10 records, an IDX file (plain or gzip), a PNG image or Pathfinder's metadata, chosen by
// the first byte: the contents or an Error.
#include <string_view>

#include "tasks/images.h"
#include "tasks/pathfinder.h"
#include "tensor/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace eigentrace;
  if (bytes == 0) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, bytes - 1);
  constexpr int64_t kSides[] = {28, 28};
  try {
    ImageSet set;
    switch (data[0] % 5) {
      case 0:
        parse_cifar(rest, "fuzz", set);
        break;
      case 1:
        parse_idx(rest, "fuzz", kSides);
        break;
      case 2:
        parse_idx(rest, "fuzz", {});
        break;
      case 3:
        parse_png(rest, "fuzz", 32, 32);
        break;
      default:
        parse_pathfinder_metadata(rest, "fuzz");
    }
  } catch (const Error&) {}
  return 0;
}
