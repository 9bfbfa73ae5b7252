#include "tensor/shape.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "tensor/error.h"

namespace eigentrace {

Shape::Shape(std::initializer_list<int64_t> sizes) : Shape(std::vector<int64_t>(sizes)) {}

Shape::Shape(const std::vector<int64_t>& sizes) {
  if (sizes.size() > max_rank)
    fail(fmt::format("Shape: {} axes, at most {} expected", sizes.size(), max_rank));
  rank_ = static_cast<int>(sizes.size());
  std::copy(sizes.begin(), sizes.end(), sizes_.begin());
}

bool Shape::operator==(const Shape& other) const {
  return rank_ == other.rank_ && std::equal(begin(), end(), other.begin());
}

int64_t Shape::numel() const {
  int64_t product = 1;
  for (int64_t size : *this) product *= size;
  return product;
}

Shape Shape::with(int64_t size) const {
  std::vector<int64_t> sizes = to_vector();
  sizes.push_back(size);
  return Shape(sizes);
}

Shape Shape::without(int axis) const {
  std::vector<int64_t> sizes = to_vector();
  sizes.erase(sizes.begin() + (axis < 0 ? axis + rank_ : axis));
  return Shape(sizes);
}

std::string to_string(const Shape& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

Shape contiguous_strides(const Shape& shape) {
  Shape strides = shape;
  int64_t stride = 1;
  for (int axis = shape.rank() - 1; axis >= 0; --axis) strides[axis] = stride, stride *= shape[axis];
  return strides;
}

Shape broadcast(const Shape& a, const Shape& b) {
  std::vector<int64_t> sizes(static_cast<size_t>(std::max(a.rank(), b.rank())));
  for (int i = 1; i <= static_cast<int>(sizes.size()); ++i) {
    const int64_t x = i <= a.rank() ? a[a.rank() - i] : 1, y = i <= b.rank() ? b[b.rank() - i] : 1;
    if (x != y && x != 1 && y != 1)
      fail(fmt::format("broadcast: shapes {} and {} do not fit together", to_string(a), to_string(b)));
    sizes[sizes.size() - static_cast<size_t>(i)] = x == 1 ? y : x;
  }
  return Shape(sizes);
}

}  // namespace eigentrace
