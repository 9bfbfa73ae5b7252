// value = Σ_m w_m (lse_m − z_m[label_m]) / count,  lse_m = log Σ exp(z_m),  z_m the logits of labelled row m
// dz_m  = dloss w_m (softmax(z_m) − onehot(label_m)) / count
// Kept for each label: max z_m and Σ exp(z_m − max z_m), apart, since their lse loses the sum where |z| is
// large.
#include "tensor/dispatch.h"
#include "tensor/kernels.h"
#include "tensor/kernels/loss_cuda.cuh"
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
    const T* row = z.data + view.row(m) * z.stride;
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
    const T *row = z.data + view.row(m) * z.stride, largest = kept.data<T>()[2 * m],
            sum = kept.data<T>()[2 * m + 1];
    T* out = dz.data + view.row(m) * dz.stride;
    const T c = static_cast<T>(factor * view.weights[m]);
#pragma omp simd
    for (int64_t j = 0; j < z.cols; ++j) out[j] = c / sum * fast_exp(row[j] - largest);
    out[view.labels[m]] -= c;
  });
}

#ifdef EIGENTRACE_WITH_CUDA
/// Block m: label m.
template <class T>
__global__ void forward_kernel(Rows<T> z, DeviceLabels labels, int32_t* argmax, T* kept, double* losses) {
  const int64_t m = blockIdx.x;
  const bool used = labels.used(m), valid = used && labels.valid(m);
  if (!valid) {
    if (threadIdx.x > 0) return;
    argmax[m] = -1, kept[2 * m] = 0, kept[2 * m + 1] = 1;
    losses[m] = used ? NAN : 0;
    return;
  }
  const T* row = z.data + labels.row(m) * z.stride;
  const int n = static_cast<int>(z.cols);
  const Largest<T> best = row_largest(row, n);
  const T sum = row_exp_sum_cuda(row, n, best.value);
  if (threadIdx.x > 0) return;
  argmax[m] = best.index, kept[2 * m] = best.value, kept[2 * m + 1] = sum;
  losses[m] = static_cast<double>(best.value - row[labels.labels[m]]) + log(static_cast<double>(sum));
}

template <class T>
__global__ void backward_kernel(const T* dloss, Rows<T> z, DeviceLabels labels, const T* kept, Rows<T> dz) {
  const int64_t m = blockIdx.x;
  if (!labels.used(m) || !labels.valid(m)) return;
  const T c = static_cast<T>(static_cast<double>(*dloss) * labels.per_count() * labels.weights[m]);
  const T *row = z.data + labels.row(m) * z.stride, largest = kept[2 * m], factor = c / kept[2 * m + 1];
  T* out = dz.data + labels.row(m) * dz.stride;
  const int label = labels.labels[m];
  for (int j = static_cast<int>(threadIdx.x); j < z.cols; j += static_cast<int>(blockDim.x))
    out[j] = factor * fast_exp(row[j] - largest) - (j == label ? c : T(0));
}

template <class T>
void forward_cuda(Context& ctx, const Tensor& logits, const LabelledRows& labelled, LossResults results,
                  Tensor& kept, Tensor& losses) {
  const Rows<T> z = rows_of<T>(logits, "cross_entropy: logits");
  const DeviceLabels labels(labelled, z.rows, z.cols);
  if (labels.size > 0)
    launch(ctx, forward_kernel<T>, static_cast<unsigned>(labels.size), threads_of_row(z.cols), 0, z, labels,
           results.argmax.data<int32_t>(), kept.data<T>(), losses.data<double>());
  sum_losses_cuda<T>(ctx, labels, losses.data<double>(), results);
}

template <class T>
void backward_cuda(Context& ctx, const Tensor& dloss, const Tensor& logits, const LabelledRows& labelled,
                   const Tensor& kept, Tensor& dlogits) {
  const Rows<T> z = rows_of<T>(logits, "cross_entropy_backward: logits"),
                dz = rows_of<T>(dlogits, "cross_entropy_backward: dlogits");
  const DeviceLabels labels(labelled, z.rows, z.cols);
  if (labels.size > 0)
    launch(ctx, backward_kernel<T>, static_cast<unsigned>(labels.size), threads_of_row(z.cols), 0,
           dloss.data<T>(), z, labels, kept.data<T>(), dz);
}
#endif

}  // namespace

void cross_entropy(Context& ctx, const Tensor& logits, const LabelledRows& labelled, LossResults results,
                   Tensor& kept) {
  check_labelled("cross_entropy", labelled);
  Tensor losses = ctx.empty(labelled.labels.shape(), DType::f64);
  dispatch_floating(ctx, "cross_entropy", logits.dtype(), [&]<class T>() {
#ifdef EIGENTRACE_WITH_CUDA
    if (ctx.device().is_cuda()) return forward_cuda<T>(ctx, logits, labelled, results, kept, losses);
#endif
    require_cpu(ctx, "cross_entropy");
    forward_cpu<T>(logits, labelled, results, kept, losses);
  });
}

void cross_entropy_backward(Context& ctx, const Tensor& dloss, const Tensor& logits,
                            const LabelledRows& labelled, const Tensor& kept, Tensor& dlogits) {
  check_labelled("cross_entropy_backward", labelled);
  fill(ctx, dlogits, 0);
  dispatch_floating(ctx, "cross_entropy_backward", logits.dtype(), [&]<class T>() {
#ifdef EIGENTRACE_WITH_CUDA
    if (ctx.device().is_cuda()) return backward_cuda<T>(ctx, dloss, logits, labelled, kept, dlogits);
#endif
    require_cpu(ctx, "cross_entropy_backward");
    backward_cpu<T>(dloss, logits, labelled, kept, dlogits);
  });
}

}  // namespace eigentrace::kernels
