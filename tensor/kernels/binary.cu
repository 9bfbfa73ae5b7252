// y = a ∘ b for ∘ in + − × ÷, any strides (broadcast operands have stride 0), the gradients of × and ÷ before
// they are summed over broadcast axes, and y = factor · x.
//   ×: da = dy b, db = dy a        ÷: da = dy / b, db = −dy a / b²
#include "tensor/elements.h"
#include "tensor/float32_copies.h"
#include "tensor/kernels.h"

namespace eigentrace::kernels {
namespace {

struct Add {
  template <class T>
  ET_HD T operator()(T a, T b) const {
    return a + b;
  }
};
struct Sub {
  template <class T>
  ET_HD T operator()(T a, T b) const {
    return a - b;
  }
};
struct Mul {
  template <class T>
  ET_HD T operator()(T a, T b) const {
    return a * b;
  }
};
struct Div {
  template <class T>
  ET_HD T operator()(T a, T b) const {
    return a / b;
  }
};
struct DivBackwardB {
  template <class T>
  ET_HD T operator()(T dy, T a, T b) const {
    return -dy * a / (b * b);
  }
};
struct AnyOf {  // bf16: one kernel for all four
  Binary f;
  ET_HD float operator()(float a, float b) const {
    switch (f) {
      case Binary::add:
        return a + b;
      case Binary::sub:
        return a - b;
      case Binary::mul:
        return a * b;
      case Binary::div:
        break;
    }
    return a / b;
  }
};
template <class T>
struct Scale {
  T factor;
  ET_HD T operator()(T x) const { return factor * x; }
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
  dispatch_stored(ctx, "binary", y.dtype(), [&]<class T>() {
    const std::array inputs{a, b};
    if constexpr (std::is_same_v<T, BFloat16>) return map_elements<T>(ctx, AnyOf{f}, inputs, y);
    switch (f) {
      case Binary::add:
        return map_elements<T>(ctx, Add{}, inputs, y);
      case Binary::sub:
        return map_elements<T>(ctx, Sub{}, inputs, y);
      case Binary::mul:
        return map_elements<T>(ctx, Mul{}, inputs, y);
      case Binary::div:
        return map_elements<T>(ctx, Div{}, inputs, y);
    }
  });
}

void div_backward_b(Context& ctx, const Tensor& dy, const Tensor& a, const Tensor& b, Tensor& db) {
  if (in_float32(ctx, div_backward_b, dy, a, b, db)) return;
  check_shapes("div_backward_b", dy, a, db);
  check_shapes("div_backward_b", b, b, db);
  dispatch_floating(ctx, "div_backward_b", db.dtype(), [&]<class T>() {
    map_elements<T>(ctx, DivBackwardB{}, std::array{dy, a, b}, db);
  });
}

void scale(Context& ctx, const Tensor& x, double factor, Tensor& y) {
  check_shapes("scale", x, x, y);
  dispatch_stored(ctx, "scale", x.dtype(), [&]<class T>() {
    using A = Arithmetic<T>;
    map_elements<T>(ctx, Scale<A>{static_cast<A>(factor)}, std::array{x}, y);
  });
}

}  // namespace eigentrace::kernels
