// y[b, t] = x[b, T − 1 − t]; the backward pass is the same map of dy.
#include "tensor/elements.h"
#include "tensor/kernels.h"

namespace eigentrace::kernels {
namespace {

template <class T>
struct Reverse {
  const T* x;
  T* y;
  int64_t time, x_batch, x_time, y_batch, y_time;
  ET_HD void operator()(int64_t row, int64_t i) const {
    const int64_t b = row / time, t = row % time;
    y[b * y_batch + t * y_time + i] = x[b * x_batch + (time - 1 - t) * x_time + i];
  }
};

#ifdef EIGENTRACE_WITH_CUDA
struct Same {
  template <class T>
  ET_HD T operator()(T x) const {
    return x;
  }
};
#endif

}  // namespace

void reverse_time(Context& ctx, const Tensor& x, Tensor& y) {
  const auto dense = [](const Tensor& t) { return t.dim(2) == 1 || t.stride(2) == 1; };
  if (x.rank() != 3 || !(x.shape() == y.shape()) || !dense(x) || !dense(y))
    fail("reverse_time: x and y [B, T, D] with a dense last axis expected, found " + to_string(x) + " and " +
         to_string(y));
  dispatch_stored(ctx, "reverse_time", x.dtype(), [&]<class T>() {
#ifdef EIGENTRACE_WITH_CUDA
    if (ctx.device().is_cuda()) {  // a copy from the last step, backwards
      if (x.numel() == 0) return;
      Shape from = x.strides();
      from[1] = -from[1];
      const Addresses<2> address{{x.data<T>() + (x.dim(1) - 1) * x.stride(1), y.data<T>()}};
      return launch_elements<1, 1, T, T>(ctx, element_plan<2>(x.shape(), {from, y.strides()}), address,
                                         Same{});
    }
#endif
    if constexpr (!std::is_same_v<T, BFloat16>)
      for_each_in_rows(
          ctx, x.dim(0) * x.dim(1), x.dim(2),
          Reverse<T>{x.data<T>(), y.data<T>(), x.dim(1), x.stride(0), x.stride(1), y.stride(0), y.stride(1)});
  });
}

}  // namespace eigentrace::kernels
