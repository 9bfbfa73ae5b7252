#include "tensor/io/host_array.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace eigentrace {

std::string shape_text(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

int64_t checked_count(const std::vector<int64_t>& shape, DType dtype, const std::string& where) {
  int64_t count = 1;
  bool empty = false, overflow = false;
  for (const int64_t dim : shape) {
    if (dim < 0)
      fail(fmt::format("{}: shape: expected dimensions of at least 0, found {}", where, shape_text(shape)));
    empty |= dim == 0;
    overflow |= __builtin_mul_overflow(count, dim == 0 ? 1 : dim, &count);
  }
  int64_t bytes;
  overflow |= __builtin_mul_overflow(count, int64_t(size_of(dtype)), &bytes);
  if (overflow)
    fail(fmt::format("{}: shape: expected an array that fits in 2^63 bytes, found {} of {}", where,
                     shape_text(shape), name_of(dtype)));
  return empty ? 0 : count;
}

}  // namespace eigentrace
