// fill: y = value.   copy: y = x.   accumulate: y += x.   cast: y = x in another type.   Any strides.
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
  dispatch_stored(ctx, name, x.dtype(), [&]<class T>() {
    if constexpr (add)
      map_elements<T>(ctx, Add{}, std::array{x, y}, y);
    else
      map_elements<T>(ctx, Copy{}, std::array{x}, y);
  });
}

}  // namespace

void fill(Context& ctx, Tensor& y, double value) {
  dispatch_stored(ctx, "fill", y.dtype(), [&]<class T>() {
    map_elements<T>(ctx, Fill<Arithmetic<T>>{static_cast<Arithmetic<T>>(value)}, std::array<Tensor, 0>{}, y);
  });
}

void copy(Context& ctx, const Tensor& x, Tensor& y) { copy_or_add<false>(ctx, "copy", x, y); }
void accumulate(Context& ctx, const Tensor& x, Tensor& y) { copy_or_add<true>(ctx, "accumulate", x, y); }

void cast(Context& ctx, const Tensor& x, Tensor& y) {
  const bool narrows = x.dtype() == DType::f32 && y.dtype() == DType::bf16;
  if (!(x.shape() == y.shape()) || !(narrows || (x.dtype() == DType::bf16 && y.dtype() == DType::f32)))
    fail("cast: x is " + to_string(x) + ", y is " + to_string(y) + "; equal shapes, f32 and bf16 expected");
  if (!ctx.device().is_cuda()) fail("cast: bf16 exists on a GPU only");
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.dry()) return;
  if (narrows)
    map_elements_cuda<float, BFloat16>(ctx, Copy{}, std::array{x}, std::array{y});
  else
    map_elements_cuda<BFloat16, float>(ctx, Copy{}, std::array{x}, std::array{y});
#endif
}

}  // namespace eigentrace::kernels
