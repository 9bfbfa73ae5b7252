// y = x − log Σ exp(x) over the last axis;  dx = dy − exp(y) Σ dy.
#include "tensor/dispatch.h"
#include "tensor/kernels.h"
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

void check(const char* what, const Tensor& a, const Tensor& b) {
  if (a.rank() < 1 || !(a.shape() == b.shape()) || a.dtype() != b.dtype())
    fail(std::string(what) + ": equal shapes and types expected, found " + to_string(a) + ", " +
         to_string(b));
}

}  // namespace

void log_softmax(Context& ctx, const Tensor& x, Tensor& y) {
  check("log_softmax", x, y);
  require_cpu(ctx, "log_softmax");
  dispatch_floating(ctx, "log_softmax", x.dtype(), [&]<class T>() { forward_cpu<T>(x, y); });
}

void log_softmax_backward(Context& ctx, const Tensor& y, const Tensor& dy, Tensor& dx) {
  check("log_softmax_backward", y, dy), check("log_softmax_backward", y, dx);
  require_cpu(ctx, "log_softmax_backward");
  dispatch_floating(ctx, "log_softmax_backward", y.dtype(), [&]<class T>() { backward_cpu<T>(y, dy, dx); });
}

}  // namespace eigentrace::kernels
