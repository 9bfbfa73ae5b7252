#pragma once
// Shapes, and the one legend of shape letters that every comment in the house uses:
//
//   B batch   T time   H heads   P head width (of v)   N state (head width of q, k)   G groups of heads
//   D model   E inner width   V vocabulary   K convolution taps   L layers   C channels   R rank or rows
#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

namespace eigentrace {

/// Sizes of a tensor's axes, or its strides: up to six numbers, kept inline.
class Shape {
 public:
  static constexpr int max_rank = 6;

  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes);
  explicit Shape(const std::vector<int64_t>& sizes);

  int rank() const { return rank_; }
  int64_t operator[](int axis) const { return sizes_[static_cast<size_t>(axis < 0 ? axis + rank_ : axis)]; }
  int64_t& operator[](int axis) { return sizes_[static_cast<size_t>(axis < 0 ? axis + rank_ : axis)]; }
  const int64_t* begin() const { return sizes_.data(); }
  const int64_t* end() const { return sizes_.data() + rank_; }
  bool operator==(const Shape& other) const;

  /// Number of elements: the product of the sizes; 1 for rank 0.
  int64_t numel() const;
  /// This shape with `size` appended, or without axis `axis`.
  Shape with(int64_t size) const;
  Shape without(int axis) const;
  std::vector<int64_t> to_vector() const { return {begin(), end()}; }

 private:
  int rank_ = 0;
  std::array<int64_t, max_rank> sizes_{};
};

/// "[64, 512, 128]"
std::string to_string(const Shape& shape);

/// Row-major strides, in elements.
Shape contiguous_strides(const Shape& shape);

/// The shape both broadcast to, in NumPy's sense. Error: sizes that differ and are not 1.
Shape broadcast(const Shape& a, const Shape& b);

}  // namespace eigentrace
