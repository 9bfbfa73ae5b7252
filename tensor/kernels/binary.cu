// y = a ∘ b for ∘ in + − × ÷, any strides (broadcast operands have stride 0), the gradients of × and ÷ before
// they are summed over broadcast axes, and y = factor · x.
//   ×: da = dy b, db = dy a        ÷: da = dy / b, db = −dy a / b²
#include "tensor/dispatch.h"
#include "tensor/kernels.h"

namespace eigentrace::kernels {
namespace {

struct Add {
  template <class T>
  ET_HD static T value(T a, T b) {
    return a + b;
  }
};
struct Sub {
  template <class T>
  ET_HD static T value(T a, T b) {
    return a - b;
  }
};
struct Mul {
  template <class T>
  ET_HD static T value(T a, T b) {
    return a * b;
  }
};
struct Div {
  template <class T>
  ET_HD static T value(T a, T b) {
    return a / b;
  }
};

template <class F, class T>
struct Apply {
  const T *a, *b;
  T* y;
  ET_HD void operator()(int64_t i, int64_t j, int64_t k, int64_t) const { y[k] = F::value(a[i], b[j]); }
};
template <class T>
struct DivBackwardB {
  const T *dy, *a, *b;
  T* db;
  ET_HD void operator()(int64_t i, int64_t j, int64_t k, int64_t l) const {
    db[l] = -dy[i] * a[j] / (b[k] * b[k]);
  }
};
template <class T>
struct Scale {
  const T* x;
  T* y;
  T factor;
  ET_HD void operator()(int64_t i, int64_t j, int64_t, int64_t) const { y[j] = factor * x[i]; }
};

void check_shapes(const char* name, const Tensor& a, const Tensor& b, const Tensor& y) {
  if (!(a.shape() == y.shape() && b.shape() == y.shape()) || a.dtype() != y.dtype() || b.dtype() != y.dtype())
    fail(std::string(name) + ": operands are " + to_string(a) + ", " + to_string(b) + " and " + to_string(y) +
         "; equal shapes and types expected");
}

}  // namespace

const char* name_of(Binary f) {
  constexpr const char* names[] = {"add", "sub", "mul", "div"};
  return names[static_cast<int>(f)];
}

void binary(Context& ctx, Binary f, const Tensor& a, const Tensor& b, Tensor& y) {
  check_shapes(name_of(f), a, b, y);
  dispatch_floating(ctx, "binary", y.dtype(), [&]<class T>() {
    const StridedIndex index = strided_index(a, b, y);
    const T *pa = a.data<T>(), *pb = b.data<T>();
    T* py = y.data<T>();
    switch (f) {
      case Binary::add:
        return for_each_offset(ctx, index, Apply<Add, T>{pa, pb, py});
      case Binary::sub:
        return for_each_offset(ctx, index, Apply<Sub, T>{pa, pb, py});
      case Binary::mul:
        return for_each_offset(ctx, index, Apply<Mul, T>{pa, pb, py});
      case Binary::div:
        return for_each_offset(ctx, index, Apply<Div, T>{pa, pb, py});
    }
  });
}

void div_backward_b(Context& ctx, const Tensor& dy, const Tensor& a, const Tensor& b, Tensor& db) {
  check_shapes("div_backward_b", dy, a, db);
  check_shapes("div_backward_b", b, b, db);
  dispatch_floating(ctx, "div_backward_b", db.dtype(), [&]<class T>() {
    for_each_offset(ctx, strided_index(dy, a, b, db),
                    DivBackwardB<T>{dy.data<T>(), a.data<T>(), b.data<T>(), db.data<T>()});
  });
}

void scale(Context& ctx, const Tensor& x, double factor, Tensor& y) {
  check_shapes("scale", x, x, y);
  dispatch_floating(ctx, "scale", x.dtype(), [&]<class T>() {
    for_each_offset(ctx, strided_index(x, y, y), Scale<T>{x.data<T>(), y.data<T>(), static_cast<T>(factor)});
  });
}

}  // namespace eigentrace::kernels
