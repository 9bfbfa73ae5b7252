// Gated linear unit over the last axis, rows: [a, b] = x, y = a σ(b).
//   da = dy σ(b),   db = dy a σ(b) σ(−b)
#include "tensor/elements.h"
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

#ifdef EIGENTRACE_WITH_CUDA
struct GluForward {
  template <class T>
  ET_HD T operator()(T a, T b) const {
    return a * sigmoid(b);
  }
};
struct GluBackward {  // a, b, dy → da, db
  template <class T, int width>
  ET_HD void pack(int64_t, const Vec<T, width> (&x)[3], Vec<T, width> (&y)[2]) const {
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const T s = sigmoid(x[1].x[i]), g = x[2].x[i];
      y[0].x[i] = g * s;
      y[1].x[i] = g * x[0].x[i] * s * sigmoid(-x[1].x[i]);
    }
  }
};

Tensor half(const Tensor& x, int which) { return x.slice(-1, which * (x.dim(-1) / 2), x.dim(-1) / 2); }
#endif

}  // namespace

void glu(Context& ctx, const Tensor& x, Tensor& y) {
  dispatch_stored(ctx, "glu", x.dtype(), [&]<class T>() {
#ifdef EIGENTRACE_WITH_CUDA
    if (ctx.device().is_cuda())
      return map_elements_cuda<T>(ctx, GluForward{}, std::array{half(x, 0), half(x, 1)}, std::array{y});
#endif
    if constexpr (!std::is_same_v<T, BFloat16>) {
      const Rows<T> rows = rows_of<T>(y, "glu: y");
      for_each_in_rows(ctx, rows.rows, rows.cols, Forward<T>{rows_of<T>(x, "glu: x"), rows});
    }
  });
}

void glu_backward(Context& ctx, const Tensor& x, const Tensor& dy, Tensor& dx) {
  dispatch_stored(ctx, "glu_backward", x.dtype(), [&]<class T>() {
#ifdef EIGENTRACE_WITH_CUDA
    if (ctx.device().is_cuda())
      return map_elements_cuda<T>(ctx, GluBackward{}, std::array{half(x, 0), half(x, 1), dy},
                                  std::array{half(dx, 0), half(dx, 1)});
#endif
    if constexpr (!std::is_same_v<T, BFloat16>) {
      const Rows<T> rows = rows_of<T>(dy, "glu_backward: dy");
      for_each_in_rows(
          ctx, rows.rows, rows.cols,
          BackwardOf<T>{rows_of<T>(x, "glu_backward: x"), rows, rows_of<T>(dx, "glu_backward: dx")});
    }
  });
}

}  // namespace eigentrace::kernels
