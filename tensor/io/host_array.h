#pragma once
// An array in host memory, row-major: what the file formats read and write.
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "tensor/dtype.h"
#include "tensor/error.h"

namespace eigentrace {

/// Product of the dimensions; Error (naming `where`) if one is negative or the array would not fit in memory.
int64_t checked_count(const std::vector<int64_t>& shape, DType dtype, const std::string& where);

/// "[2, 3]"; "[]" for a scalar.
std::string shape_text(const std::vector<int64_t>& shape);

/// Somebody else's row-major array, to be written; it must outlive the view.
struct HostView {
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;

  HostView() = default;
  HostView(DType type, std::vector<int64_t> dims, const void* data) : dtype(type), shape(std::move(dims)) {
    bytes = {static_cast<const std::byte*>(data),
             size_t(checked_count(shape, dtype, "HostView")) * size_of(dtype)};
  }
  /// From values; Error unless there are as many as the shape says.
  template <class T>
  HostView(std::vector<int64_t> dims, const std::vector<T>& values)
      : HostView(dtype_of<T>(), dims, values.data()) {
    if (bytes.size() != values.size() * sizeof(T))
      fail("HostView: values: expected as many as shape " + shape_text(shape) + " says, found " +
           std::to_string(values.size()));
  }
};

/// An array of our own.
struct HostArray {
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  std::vector<std::byte> bytes;

  HostArray() = default;
  HostArray(DType type, std::vector<int64_t> dims) : dtype(type), shape(std::move(dims)) {
    bytes.resize(size_t(checked_count(shape, dtype, "HostArray")) * size_of(dtype));
  }
  explicit HostArray(const HostView& view)
      : dtype(view.dtype), shape(view.shape), bytes(view.bytes.begin(), view.bytes.end()) {}
  operator HostView() const { return HostView(dtype, shape, bytes.data()); }

  int64_t count() const { return int64_t(bytes.size() / size_of(dtype)); }
  /// The elements; Error if T is not the array's type.
  template <class T>
  std::span<const T> as() const {
    check_type(dtype_of<T>());
    return {reinterpret_cast<const T*>(bytes.data()), bytes.size() / sizeof(T)};
  }
  template <class T>
  std::span<T> as() {
    check_type(dtype_of<T>());
    return {reinterpret_cast<T*>(bytes.data()), bytes.size() / sizeof(T)};
  }

 private:
  void check_type(DType asked) const {
    if (asked != dtype)
      fail(std::string("HostArray::as: type: expected ") + name_of(dtype) +
           ", which the array holds; found " + name_of(asked));
  }
};

}  // namespace eigentrace
