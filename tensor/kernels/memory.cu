// fill: y = value.   copy: y = x.   accumulate: y += x.   Any strides.
#include "tensor/dispatch.h"
#include "tensor/kernels.h"
#include "tensor/strided.h"

namespace eigentrace::kernels {
namespace {

template <class T>
struct Fill {
  T* y;
  T value;
  ET_HD void operator()(int64_t to, int64_t, int64_t, int64_t) const { y[to] = value; }
};
template <class T, bool add>
struct Copy {
  const T* x;
  T* y;
  ET_HD void operator()(int64_t from, int64_t to, int64_t, int64_t) const {
    y[to] = add ? y[to] + x[from] : x[from];
  }
};

template <bool add>
void copy_or_add(Context& ctx, const char* name, const Tensor& x, Tensor& y) {
  if (!(x.shape() == y.shape()) || x.dtype() != y.dtype())
    fail(std::string(name) + ": x is " + to_string(x) + ", y is " + to_string(y) +
         "; equal shapes and types expected");
  dispatch_floating(ctx, name, x.dtype(), [&]<class T>() {
    for_each_offset(ctx, strided_index(x, y, y), Copy<T, add>{x.data<T>(), y.data<T>()});
  });
}

}  // namespace

void fill(Context& ctx, Tensor& y, double value) {
  dispatch_floating(ctx, "fill", y.dtype(), [&]<class T>() {
    for_each_offset(ctx, strided_index(y, y, y), Fill<T>{y.data<T>(), static_cast<T>(value)});
  });
}

void copy(Context& ctx, const Tensor& x, Tensor& y) { copy_or_add<false>(ctx, "copy", x, y); }
void accumulate(Context& ctx, const Tensor& x, Tensor& y) { copy_or_add<true>(ctx, "accumulate", x, y); }

}  // namespace eigentrace::kernels
