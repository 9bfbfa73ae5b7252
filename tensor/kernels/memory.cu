// fill: y = value.   copy: y = x.   accumulate: y += x.   Any strides.
#include "tensor/elements.h"
#include "tensor/kernels.h"

namespace eigentrace::kernels {
namespace {

template <class T>
struct Fill {
  T value;
  ET_HD T operator()() const { return value; }
};
struct Copy {
  template <class T>
  ET_HD T operator()(T x) const {
    return x;
  }
};
struct Add {
  template <class T>
  ET_HD T operator()(T x, T y) const {
    return y + x;
  }
};

template <bool add>
void copy_or_add(Context& ctx, const char* name, const Tensor& x, Tensor& y) {
  if (!(x.shape() == y.shape()) || x.dtype() != y.dtype())
    fail(std::string(name) + ": x is " + to_string(x) + ", y is " + to_string(y) +
         "; equal shapes and types expected");
  dispatch_floating(ctx, name, x.dtype(), [&]<class T>() {
    if constexpr (add)
      map_elements<T>(ctx, Add{}, std::array{x, y}, y);
    else
      map_elements<T>(ctx, Copy{}, std::array{x}, y);
  });
}

}  // namespace

void fill(Context& ctx, Tensor& y, double value) {
  dispatch_floating(ctx, "fill", y.dtype(), [&]<class T>() {
    map_elements<T>(ctx, Fill<T>{static_cast<T>(value)}, std::array<Tensor, 0>{}, y);
  });
}

void copy(Context& ctx, const Tensor& x, Tensor& y) { copy_or_add<false>(ctx, "copy", x, y); }
void accumulate(Context& ctx, const Tensor& x, Tensor& y) { copy_or_add<true>(ctx, "accumulate", x, y); }

}  // namespace eigentrace::kernels
