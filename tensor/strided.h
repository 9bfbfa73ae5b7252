#pragma once
// Element addresses of strided tensors, for kernels.
#include "tensor/hd.h"
#include "tensor/tensor.h"

namespace eigentrace {

/// Maps a row-major element number to offsets in up to four tensors of one shape. Axes are collapsed where
/// all tensors allow it, so that dense operands cost one division less per axis.
struct StridedIndex {
  int rank = 0;
  int64_t size[Shape::max_rank];
  int64_t stride[4][Shape::max_rank];

  ET_HD int64_t offset(int tensor, int64_t i) const {
    int64_t at = 0;
    for (int axis = rank - 1; axis > 0; --axis) {
      at += i % size[axis] * stride[tensor][axis];
      i /= size[axis];
    }
    return rank == 0 ? 0 : at + i * stride[tensor][0];
  }
  int64_t numel() const {
    int64_t product = 1;
    for (int axis = 0; axis < rank; ++axis) product *= size[axis];
    return product;
  }
  bool dense() const {
    if (rank > 1) return false;
    for (int t = 0; t < 4; ++t)
      if (rank == 1 && stride[t][0] != 1) return false;
    return true;
  }
};

/// Index over the shape that all four have (expand them first). Fewer tensors: pass the last again.
inline StridedIndex strided_index(const Tensor& a, const Tensor& b, const Tensor& c, const Tensor& d) {
  StridedIndex index;
  const Tensor* tensors[4] = {&a, &b, &c, &d};
  for (int axis = 0; axis < a.rank(); ++axis) {
    if (a.dim(axis) == 1) continue;
    bool merge = index.rank > 0;
    for (int t = 0; t < 4 && merge; ++t)
      merge = index.stride[t][index.rank - 1] == tensors[t]->stride(axis) * a.dim(axis);
    if (merge) {
      index.size[index.rank - 1] *= a.dim(axis);
    } else {
      index.size[index.rank++] = a.dim(axis);
    }
    for (int t = 0; t < 4; ++t) index.stride[t][index.rank - 1] = tensors[t]->stride(axis);
  }
  return index;
}
inline StridedIndex strided_index(const Tensor& a, const Tensor& b, const Tensor& c) {
  return strided_index(a, b, c, c);
}

}  // namespace eigentrace
