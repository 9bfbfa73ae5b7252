#pragma once
// [B, T, H, N] operands of the attention kernels, as CPU bodies read them: any strides, last axis dense.
#include <omp.h>

#include <string>
#include <type_traits>

#include "tensor/blas.h"
#include "tensor/error.h"
#include "tensor/hd.h"

namespace eigentrace {

template <class T>
struct Heads {
  T* data;
  int64_t batch, time, head;  ///< strides
  /// Rows t, t+1, … of one batch entry and head, as a matrix [time, width].
  Matrix<T> rows(int64_t b, int64_t h, int64_t t) const {
    return {data + b * batch + h * head + t * time, time};
  }
  ET_HD T* row(int64_t b, int64_t h, int64_t t) const { return data + b * batch + h * head + t * time; }
};

/// Error: a rank other than 4, a strided last axis, rows that overlap.
template <class T>
Heads<T> heads_of(const Tensor& x, const char* what) {
  const bool good =
      x.rank() == 4 && (x.stride(3) == 1 || x.dim(3) <= 1) && (x.stride(1) >= x.dim(3) || x.dim(1) <= 1);
  if (!good)
    fail(std::string(what) + ": [B, T, H, N] with a dense last axis expected, found " + to_string(x) +
         " with strides " + to_string(x.strides()) + "; copy it first");
  return {x.data<T>(), x.stride(0), x.dim(1) <= 1 ? std::max<int64_t>(x.dim(3), 1) : x.stride(1),
          x.stride(2)};
}

/// A number per step and head: [B, T, H], or [H] (strides 0), or absent.
template <class T>
struct PerStep {
  T* data = nullptr;
  int64_t batch = 0, time = 0, head = 0;

  PerStep() = default;
  explicit PerStep(const Tensor& x) {
    if (!x.defined()) return;
    data = x.data<std::remove_const_t<T>>();
    if (x.rank() == 1)
      head = x.stride(0);
    else
      batch = x.stride(0), time = x.stride(1), head = x.stride(2);
  }
  ET_HD T& at(int64_t b, int64_t t, int64_t h) const { return data[b * batch + t * time + h * head]; }
};

/// Scratch for each thread: `elements` apart.
template <class T>
struct ThreadScratch {
  T* data;
  int64_t elements;
  T* mine() const { return data + omp_get_thread_num() * elements; }
};

}  // namespace eigentrace
