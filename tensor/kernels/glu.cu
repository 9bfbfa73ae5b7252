// Gated linear unit over the last axis, rows: [a, b] = x, y = a σ(b).
//   da = dy σ(b),   db = dy a σ(b) σ(−b)
#include "tensor/dispatch.h"
#include "tensor/kernels.h"
#include "tensor/math.h"

namespace eigentrace::kernels {
namespace {

template <class T>
struct Forward {
  Rows<T> x, y;
  ET_HD void operator()(int64_t row, int64_t i) const {
    const T* a = x.data + row * x.stride;
    y.data[row * y.stride + i] = a[i] * sigmoid(a[y.cols + i]);
  }
};
template <class T>
struct BackwardOf {
  Rows<T> x, dy, dx;
  ET_HD void operator()(int64_t row, int64_t i) const {
    const T* a = x.data + row * x.stride;
    T* da = dx.data + row * dx.stride;
    const T b = a[dy.cols + i], s = sigmoid(b), g = dy.data[row * dy.stride + i];
    da[i] = g * s;
    da[dy.cols + i] = g * a[i] * s * sigmoid(-b);
  }
};

}  // namespace

void glu(Context& ctx, const Tensor& x, Tensor& y) {
  dispatch_floating(ctx, "glu", x.dtype(), [&]<class T>() {
    const Rows<T> rows = rows_of<T>(y, "glu: y");
    for_each_in_rows(ctx, rows.rows, rows.cols, Forward<T>{rows_of<T>(x, "glu: x"), rows});
  });
}

void glu_backward(Context& ctx, const Tensor& x, const Tensor& dy, Tensor& dx) {
  dispatch_floating(ctx, "glu_backward", x.dtype(), [&]<class T>() {
    const Rows<T> rows = rows_of<T>(dy, "glu_backward: dy");
    for_each_in_rows(
        ctx, rows.rows, rows.cols,
        BackwardOf<T>{rows_of<T>(x, "glu_backward: x"), rows, rows_of<T>(dx, "glu_backward: dx")});
  });
}

}  // namespace eigentrace::kernels
