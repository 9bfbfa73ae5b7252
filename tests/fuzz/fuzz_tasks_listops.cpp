// Any bytes: rows or an Error; what is read has a value or an Error, and survives writing and reading.
#include <cstdlib>
#include <string_view>

#include "tasks/listops.h"
#include "tensor/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace eigentrace;
  try {
    const auto rows = parse_listops_tsv({reinterpret_cast<const char*>(data), bytes}, "fuzz");
    for (const ListOpsRow& row : rows) {
      listops_value(row.codes);
      if (parse_listops(listops_text(row.codes)) != row.codes) std::abort();
    }
  } catch (const Error&) {}
  return 0;
}
