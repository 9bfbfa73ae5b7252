#pragma once
// Pieces of a softmax over one dense row, for CPU bodies. Lanes are combined in an order that the row's
// length fixes.
#include <cmath>

#include "tensor/math.h"

namespace eigentrace {

template <class T>
T row_max(const T* x, int64_t n) {
  T largest = -INFINITY;
#pragma omp simd reduction(max : largest)
  for (int64_t j = 0; j < n; ++j) largest = x[j] > largest ? x[j] : largest;
  return largest;
}

/// Σ exp(x_j − shift)
template <class T>
T row_exp_sum(const T* x, int64_t n, T shift) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) sum += fast_exp(x[j] - shift);
  return sum;
}

/// y_j = exp(x_j − shift); returns the sum. x and y may be the same.
template <class T>
T row_exp(const T* x, T* y, int64_t n, T shift) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) {
    const T e = fast_exp(x[j] - shift);
    y[j] = e;
    sum += e;
  }
  return sum;
}

/// The first j of the largest x_j; 0 where all are NaN.
template <class T>
int64_t row_argmax(const T* x, int64_t n) {
  constexpr int64_t block = 512;
  T largest = -INFINITY;
  int64_t start = 0;
  for (int64_t j = 0; j < n; j += block) {
    const T top = row_max(x + j, n - j < block ? n - j : block);
    if (top > largest) largest = top, start = j;
  }
  for (int64_t j = start; j < n; ++j)
    if (x[j] == largest) return j;
  return 0;
}

}  // namespace eigentrace
