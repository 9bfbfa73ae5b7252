#pragma once
// The labelled rows of a loss, as CPU bodies read them; and rows that were gathered by them.
#include <string>

#include "tensor/error.h"
#include "tensor/kernels.h"

namespace eigentrace::kernels {

struct LabelView {
  const int32_t *rows, *labels;  ///< rows null: label m's row is m
  const float* weights;
  int64_t size;      ///< M, padding included
  double per_count;  ///< 1 / count; 0 where nothing is counted

  bool used(int64_t m) const { return weights[m] != 0; }
  int64_t row(int64_t m) const { return rows ? rows[m] : m; }
};

/// Error: shapes and types that are not those of LabelledRows.
inline void check_labelled(const char* what, const LabelledRows& l) {
  const bool rows = !l.rows.defined() || (l.rows.shape() == l.labels.shape() &&
                                          l.rows.dtype() == DType::i32 && l.rows.contiguous());
  const bool good = rows && l.labels.rank() == 1 && l.labels.shape() == l.weights.shape() &&
                    l.labels.dtype() == DType::i32 && l.weights.dtype() == DType::f32 &&
                    l.count.dtype() == DType::f64 && l.count.numel() == 1 && l.labels.contiguous() &&
                    l.weights.contiguous();
  if (!good)
    fail(std::string(what) + ": rows, labels i32 [M], weights f32 [M], count f64 [1] expected, found " +
         to_string(l.rows) + ", " + to_string(l.labels) + ", " + to_string(l.weights) + ", " +
         to_string(l.count));
}

/// Error: a row or class out of range; rows that do not ascend (each may carry one label).
inline LabelView view_labelled(const char* what, const LabelledRows& l, int64_t row_count, int64_t classes) {
  LabelView view{l.rows.defined() ? l.rows.data<int32_t>() : nullptr, l.labels.data<int32_t>(),
                 l.weights.data<float>(), l.labels.numel(), 0};
  const double count = *l.count.data<double>();
  view.per_count = count == 0 ? 0 : 1 / count;
  int64_t last = -1;
  for (int64_t m = 0; m < view.size; ++m) {
    if (!view.used(m)) continue;
    const int64_t row = view.row(m), label = view.labels[m];
    if (row <= last || row >= row_count)
      fail(std::string(what) + ": labels.rows: ascending rows below " + std::to_string(row_count) +
           " expected, found " + std::to_string(row) + " after " + std::to_string(last));
    if (label < 0 || label >= classes)
      fail(std::string(what) + ": labels.labels: a class below " + std::to_string(classes) +
           " expected, found " + std::to_string(label) + " at row " + std::to_string(row));
    last = row;
  }
  return view;
}

/// y_m = x[rows_m] where weight_m ≠ 0, else 0. x as rows, y [M, …] as many columns.
void gather_labelled(Context& ctx, const Tensor& x, const LabelledRows& labelled, Tensor& y);

/// y[rows_m] += x_m where weight_m ≠ 0.
void add_labelled(Context& ctx, const Tensor& x, const LabelledRows& labelled, Tensor& y);

/// Sums what the rows reported, in order. losses [M]: lse − z[label], read where the weight is not 0.
template <class T>
void sum_losses(const LabelView& labelled, const double* losses, LossResults results) {
  const int32_t* argmax = results.argmax.data<int32_t>();
  double sum = 0, correct = 0;
  for (int64_t m = 0; m < labelled.size; ++m) {
    if (!labelled.used(m)) continue;
    sum += labelled.weights[m] * losses[m];
    if (argmax[m] == labelled.labels[m]) correct += labelled.weights[m];
  }
  *results.loss_sum.data<double>() = sum;
  *results.correct.data<double>() = correct;
  *results.value.data<T>() = static_cast<T>(sum * labelled.per_count);
}

}  // namespace eigentrace::kernels
