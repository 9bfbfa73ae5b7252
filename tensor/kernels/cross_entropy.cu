// value = Σ_m w_m (lse_m − z_m[label_m]) / count,  lse_m = log Σ exp(z_m),  z_m the logits of labelled row m
// dz_m  = dloss w_m (softmax(z_m) − onehot(label_m)) / count
// Kept for each label: max z_m and Σ exp(z_m − max z_m), apart, since their lse loses the sum where |z| is
// large.
#include "tensor/dispatch.h"
#include "tensor/kernels.h"
#include "tensor/labelled_rows.h"
#include "tensor/row_softmax.h"

namespace eigentrace::kernels {
namespace {

template <class T>
void forward_cpu(const Tensor& logits, const LabelledRows& labelled, LossResults results, Tensor& kept,
                 Tensor& losses) {
  const Rows<T> z = rows_of<T>(logits, "cross_entropy: logits");
  const LabelView view = view_labelled("cross_entropy", labelled, z.rows, z.cols);
  int32_t* argmax = results.argmax.data<int32_t>();
  T* largest_and_sum = kept.data<T>();
  double* loss = losses.data<double>();
  parallel_rows(view.size, [&](int64_t m) {
    argmax[m] = -1, largest_and_sum[2 * m] = 0, largest_and_sum[2 * m + 1] = 0, loss[m] = 0;
    if (!view.used(m)) return;
    const T* row = z.data + view.rows[m] * z.stride;
    const int64_t best = row_argmax(row, z.cols);
    const T largest = row[best];
    const T sum = row_exp_sum(row, z.cols, largest);
    const double log_sum = std::log(static_cast<double>(sum));
    argmax[m] = static_cast<int32_t>(best);
    largest_and_sum[2 * m] = largest, largest_and_sum[2 * m + 1] = sum;
    loss[m] = static_cast<double>(largest - row[view.labels[m]]) + log_sum;
  });
  sum_losses<T>(view, loss, results);
}

template <class T>
void backward_cpu(const Tensor& dloss, const Tensor& logits, const LabelledRows& labelled, const Tensor& kept,
                  Tensor& dlogits) {
  const Rows<T> z = rows_of<T>(logits, "cross_entropy_backward: logits"),
                dz = rows_of<T>(dlogits, "cross_entropy_backward: dlogits");
  const LabelView view = view_labelled("cross_entropy_backward", labelled, z.rows, z.cols);
  const double factor = static_cast<double>(*dloss.data<T>()) * view.per_count;
  parallel_rows(view.size, [&](int64_t m) {
    if (!view.used(m)) return;
    const T *row = z.data + view.rows[m] * z.stride, largest = kept.data<T>()[2 * m],
            sum = kept.data<T>()[2 * m + 1];
    T* out = dz.data + view.rows[m] * dz.stride;
    const T c = static_cast<T>(factor * view.weights[m]);
#pragma omp simd
    for (int64_t j = 0; j < z.cols; ++j) out[j] = c / sum * fast_exp(row[j] - largest);
    out[view.labels[m]] -= c;
  });
}

}  // namespace

void cross_entropy(Context& ctx, const Tensor& logits, const LabelledRows& labelled, LossResults results,
                   Tensor& kept) {
  check_labelled("cross_entropy", labelled);
  require_cpu(ctx, "cross_entropy");
  Tensor losses = ctx.empty(labelled.rows.shape(), DType::f64);
  dispatch_floating(ctx, "cross_entropy", logits.dtype(),
                    [&]<class T>() { forward_cpu<T>(logits, labelled, results, kept, losses); });
}

void cross_entropy_backward(Context& ctx, const Tensor& dloss, const Tensor& logits,
                            const LabelledRows& labelled, const Tensor& kept, Tensor& dlogits) {
  check_labelled("cross_entropy_backward", labelled);
  require_cpu(ctx, "cross_entropy_backward");
  fill(ctx, dlogits, 0);
  dispatch_floating(ctx, "cross_entropy_backward", logits.dtype(),
                    [&]<class T>() { backward_cpu<T>(dloss, logits, labelled, kept, dlogits); });
}

}  // namespace eigentrace::kernels
