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
  StridedIndex index;
  ET_HD void operator()(int64_t i) const { y[index.offset(0, i)] = value; }
};
template <class T>
struct FillDense {
  T* y;
  T value;
  ET_HD void operator()(int64_t i) const { y[i] = value; }
};
template <class T, bool add>
struct Copy {
  const T* x;
  T* y;
  StridedIndex index;
  ET_HD void operator()(int64_t i) const {
    const int64_t from = index.offset(0, i), to = index.offset(1, i);
    y[to] = add ? y[to] + x[from] : x[from];
  }
};
template <class T, bool add>
struct CopyDense {
  const T* x;
  T* y;
  ET_HD void operator()(int64_t i) const { y[i] = add ? y[i] + x[i] : x[i]; }
};

template <bool add>
void copy_or_add(Context& ctx, const char* name, const Tensor& x, Tensor& y) {
  if (!(x.shape() == y.shape()) || x.dtype() != y.dtype())
    fail(std::string(name) + ": x is " + to_string(x) + ", y is " + to_string(y) +
         "; equal shapes and types expected");
  const StridedIndex index = strided_index(x, y, y);
  dispatch_floating(ctx, name, x.dtype(), [&]<class T>() {
    if (index.dense())
      for_each_index(ctx, x.numel(), CopyDense<T, add>{x.data<T>(), y.data<T>()});
    else
      for_each_index(ctx, x.numel(), Copy<T, add>{x.data<T>(), y.data<T>(), index});
  });
}

}  // namespace

void fill(Context& ctx, Tensor& y, double value) {
  const StridedIndex index = strided_index(y, y, y);
  dispatch_floating(ctx, "fill", y.dtype(), [&]<class T>() {
    if (index.dense())
      for_each_index(ctx, y.numel(), FillDense<T>{y.data<T>(), static_cast<T>(value)});
    else
      for_each_index(ctx, y.numel(), Fill<T>{y.data<T>(), static_cast<T>(value), index});
  });
}

void copy(Context& ctx, const Tensor& x, Tensor& y) { copy_or_add<false>(ctx, "copy", x, y); }
void accumulate(Context& ctx, const Tensor& x, Tensor& y) { copy_or_add<true>(ctx, "accumulate", x, y); }

}  // namespace eigentrace::kernels
