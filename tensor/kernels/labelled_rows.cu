// y_m = x[rows_m], and back: y[rows_m] = c x_m among rows of zeros, or y[rows_m] += x_m. m runs over labels,
// those of weight 0 left out.
#include "tensor/labelled_rows.h"

#include "tensor/dispatch.h"
#include "tensor/kernels.h"
#include "tensor/kernels/labelled_rows.cuh"

namespace eigentrace::kernels {
namespace {

template <class T>
void gather_cpu(const Rows<T>& x, const LabelView& labels, const Rows<T>& y) {
  parallel_rows(labels.size, [&](int64_t m) {
    const T* from = labels.used(m) ? x.data + labels.row(m) * x.stride : nullptr;
    T* to = y.data + m * y.stride;
    for (int64_t j = 0; j < y.cols; ++j) to[j] = from ? from[j] : T(0);
  });
}

template <class T>
void scatter_cpu(T factor, const Rows<T>& x, const LabelView& labels, const Rows<T>& y) {
  parallel_rows(y.rows, [&](int64_t r) {
    for (int64_t j = 0; j < y.cols; ++j) y.data[r * y.stride + j] = 0;
  });
  parallel_rows(labels.size, [&](int64_t m) {
    if (!labels.used(m)) return;
    const T* from = x.data + m * x.stride;
    T* to = y.data + labels.row(m) * y.stride;
#pragma omp simd
    for (int64_t j = 0; j < y.cols; ++j) to[j] = factor * from[j];
  });
}

template <class T>
void add_cpu(const Rows<T>& x, const LabelView& labels, const Rows<T>& y) {
  parallel_rows(labels.size, [&](int64_t m) {
    if (!labels.used(m)) return;
    const T* from = x.data + m * x.stride;
    T* to = y.data + labels.row(m) * y.stride;
#pragma omp simd
    for (int64_t j = 0; j < y.cols; ++j) to[j] += from[j];
  });
}

}  // namespace

void gather_labelled(Context& ctx, const Tensor& x, const LabelledRows& labelled, Tensor& y) {
  check_labelled("gather_labelled", labelled);
  dispatch_stored(ctx, "gather_labelled", x.dtype(), [&]<class T>() {
    const Rows<T> in = rows_of<T>(x, "gather_labelled: x"), out = rows_of<T>(y, "gather_labelled: y");
    if (out.rows != labelled.labels.numel() || out.cols != in.cols || !y.contiguous())
      fail("gather_labelled: y: a dense row a label expected, found " + to_string(y) + " for x " +
           to_string(x));
#ifdef EIGENTRACE_WITH_CUDA
    if (ctx.device().is_cuda())
      return gather_cuda(ctx, in, DeviceLabels(labelled, in.rows, INT32_MAX), out.data);
#endif
    require_cpu(ctx, "gather_labelled");
    if constexpr (!std::is_same_v<T, BFloat16>)
      gather_cpu(in, view_labelled("gather_labelled", labelled, in.rows, INT32_MAX), out);
  });
}

void scatter_labelled(Context& ctx, const Tensor& c, const Tensor& x, const LabelledRows& labelled,
                      Tensor& y) {
  check_labelled("scatter_labelled", labelled);
  if (labelled.labels.numel() == 0) return fill(ctx, y, 0);
  dispatch_stored(ctx, "scatter_labelled", x.dtype(), [&]<class T>() {
    const Rows<T> out = rows_of<T>(y, "scatter_labelled: y"), in = rows_of<T>(x, "scatter_labelled: x");
    const Arithmetic<T>* factor = c.defined() ? c.data<Arithmetic<T>>() : nullptr;
#ifdef EIGENTRACE_WITH_CUDA
    if (ctx.device().is_cuda()) {
      auto* kernel = in_packs(in) && in_packs(out) ? scatter_kernel<T, vec_width<T>> : scatter_kernel<T, 1>;
      return launch(ctx, kernel, blocks_for(out.rows, scatter_rows), scatter_threads, 0, factor, in,
                    DeviceLabels(labelled, out.rows, INT32_MAX), out);
    }
#endif
    require_cpu(ctx, "scatter_labelled");
    if constexpr (!std::is_same_v<T, BFloat16>)
      scatter_cpu(factor ? *factor : T(1), in,
                  view_labelled("scatter_labelled", labelled, out.rows, INT32_MAX), out);
  });
}

void add_labelled(Context& ctx, const Tensor& x, const LabelledRows& labelled, Tensor& y) {
  check_labelled("add_labelled", labelled);
  if (labelled.labels.numel() == 0) return;
  dispatch_stored(ctx, "add_labelled", x.dtype(), [&]<class T>() {
    const Rows<T> out = rows_of<T>(y, "add_labelled: y"), in = rows_of<T>(x, "add_labelled: x");
#ifdef EIGENTRACE_WITH_CUDA
    if (ctx.device().is_cuda()) {
      auto* kernel = in_packs(in) && in_packs(out) ? add_kernel<T, vec_width<T>> : add_kernel<T, 1>;
      return launch(ctx, kernel, blocks_for(labelled.labels.numel(), labelled_warps), 32 * labelled_warps, 0,
                    in, DeviceLabels(labelled, out.rows, INT32_MAX), out);
    }
#endif
    require_cpu(ctx, "add_labelled");
    if constexpr (!std::is_same_v<T, BFloat16>)
      add_cpu(in, view_labelled("add_labelled", labelled, out.rows, INT32_MAX), out);
  });
}

}  // namespace eigentrace::kernels
