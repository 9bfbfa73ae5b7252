// y = x − log Σ exp(x) over the last axis;  dx = dy − exp(y) Σ dy.
#include "tensor/dispatch.h"
#include "tensor/kernels.h"
#include "tensor/kernels/loss_cuda.cuh"
#include "tensor/row_softmax.h"

namespace eigentrace::kernels {
namespace {

template <class T>
void forward_cpu(const Tensor& x, Tensor& y) {
  const Rows<T> in = rows_of<T>(x, "log_softmax: x"), out = rows_of<T>(y, "log_softmax: y");
  parallel_rows(in.rows, [&](int64_t r) {
    const T* row = in.data + r * in.stride;
    T* result = out.data + r * out.stride;
    const T largest = row_max(row, in.cols);
    const T log_sum = std::log(row_exp_sum(row, in.cols, largest));
#pragma omp simd
    for (int64_t j = 0; j < in.cols; ++j) result[j] = (row[j] - largest) - log_sum;
  });
}

template <class T>
void backward_cpu(const Tensor& y, const Tensor& dy, Tensor& dx) {
  const Rows<T> value = rows_of<T>(y, "log_softmax: y"), in = rows_of<T>(dy, "log_softmax: dy"),
                out = rows_of<T>(dx, "log_softmax: dx");
  parallel_rows(in.rows, [&](int64_t r) {
    const T *row = value.data + r * value.stride, *cotangent = in.data + r * in.stride;
    T* result = out.data + r * out.stride;
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < in.cols; ++j) sum += cotangent[j];
#pragma omp simd
    for (int64_t j = 0; j < in.cols; ++j) result[j] = cotangent[j] - fast_exp(row[j]) * sum;
  });
}

#ifdef EIGENTRACE_WITH_CUDA
/// Block r: row r.
template <class T>
__global__ void forward_kernel(Rows<T> x, Rows<T> y) {
  const T* row = x.data + static_cast<int64_t>(blockIdx.x) * x.stride;
  T* out = y.data + static_cast<int64_t>(blockIdx.x) * y.stride;
  const int n = static_cast<int>(x.cols);
  const T largest = row_largest(row, n).value, log_sum = log(row_exp_sum_cuda(row, n, largest));
  for (int j = static_cast<int>(threadIdx.x); j < n; j += static_cast<int>(blockDim.x))
    out[j] = (row[j] - largest) - log_sum;
}

template <class T>
__global__ void backward_kernel(Rows<T> y, Rows<T> dy, Rows<T> dx) {
  const T *row = y.data + static_cast<int64_t>(blockIdx.x) * y.stride,
          *cotangent = dy.data + static_cast<int64_t>(blockIdx.x) * dy.stride;
  T* out = dx.data + static_cast<int64_t>(blockIdx.x) * dx.stride;
  const int first = static_cast<int>(threadIdx.x), step = static_cast<int>(blockDim.x);
  T sum = 0;
  for (int j = first; j < y.cols; j += step) sum += cotangent[j];
  sum = block_sum(sum);
  for (int j = first; j < y.cols; j += step) out[j] = cotangent[j] - fast_exp(row[j]) * sum;
}

template <class T>
void forward_cuda(Context& ctx, const Tensor& x, Tensor& y) {
  const Rows<T> in = rows_of<T>(x, "log_softmax: x"), out = rows_of<T>(y, "log_softmax: y");
  if (in.rows > 0)
    launch(ctx, forward_kernel<T>, static_cast<unsigned>(in.rows), threads_of_row(in.cols), 0, in, out);
}

template <class T>
void backward_cuda(Context& ctx, const Tensor& y, const Tensor& dy, Tensor& dx) {
  const Rows<T> value = rows_of<T>(y, "log_softmax: y"), in = rows_of<T>(dy, "log_softmax: dy"),
                out = rows_of<T>(dx, "log_softmax: dx");
  if (in.rows > 0)
    launch(ctx, backward_kernel<T>, static_cast<unsigned>(in.rows), threads_of_row(in.cols), 0, value, in,
           out);
}
#endif

void check(const char* what, const Tensor& a, const Tensor& b) {
  if (a.rank() < 1 || !(a.shape() == b.shape()) || a.dtype() != b.dtype())
    fail(std::string(what) + ": equal shapes and types expected, found " + to_string(a) + ", " +
         to_string(b));
}

}  // namespace

void log_softmax(Context& ctx, const Tensor& x, Tensor& y) {
  check("log_softmax", x, y);
  dispatch_floating(ctx, "log_softmax", x.dtype(), [&]<class T>() {
#ifdef EIGENTRACE_WITH_CUDA
    if (ctx.device().is_cuda()) return forward_cuda<T>(ctx, x, y);
#endif
    require_cpu(ctx, "log_softmax");
    forward_cpu<T>(x, y);
  });
}

void log_softmax_backward(Context& ctx, const Tensor& y, const Tensor& dy, Tensor& dx) {
  check("log_softmax_backward", y, dy), check("log_softmax_backward", y, dx);
  dispatch_floating(ctx, "log_softmax_backward", y.dtype(), [&]<class T>() {
#ifdef EIGENTRACE_WITH_CUDA
    if (ctx.device().is_cuda()) return backward_cuda<T>(ctx, y, dy, dx);
#endif
    require_cpu(ctx, "log_softmax_backward");
    backward_cpu<T>(y, dy, dx);
  });
}

}  // namespace eigentrace::kernels
