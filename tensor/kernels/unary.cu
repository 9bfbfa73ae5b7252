// Pointwise functions of one argument: y = f(x), dx = dy · f′(x), with x read again in the backward pass.
#include "tensor/elements.h"
#include "tensor/kernels.h"
#include "tensor/math.h"
#include "tensor/normal.h"

namespace eigentrace::kernels {
namespace {

constexpr double sqrt_2_over_pi = 0.79788456080286535588, gelu_cubic = 0.044715;

// One struct a function: its value and its derivative, neighbours.
struct Neg {
  template <class T>
  ET_HD static T value(T x) {
    return -x;
  }
  template <class T>
  ET_HD static T derivative(T) {
    return T(-1);
  }
};
struct Exp {
  template <class T>
  ET_HD static T value(T x) {
    return fast_exp(x);
  }
  template <class T>
  ET_HD static T derivative(T x) {
    return fast_exp(x);
  }
};
struct Relu {
  template <class T>
  ET_HD static T value(T x) {
    return x > 0 ? x : T(0);
  }
  template <class T>
  ET_HD static T derivative(T x) {
    return x > 0 ? T(1) : T(0);
  }
};
struct Sigmoid {
  template <class T>
  ET_HD static T value(T x) {
    return sigmoid(x);
  }
  template <class T>
  ET_HD static T derivative(T x) {
    return sigmoid(x) * sigmoid(-x);
  }
};
struct Silu {
  template <class T>
  ET_HD static T value(T x) {
    return x * sigmoid(x);
  }
  template <class T>
  ET_HD static T derivative(T x) {
    const T s = sigmoid(x);
    return s * (T(1) + x * (T(1) - s));
  }
};
struct Gelu {  // x Φ(x), Φ the normal distribution function
  template <class T>
  ET_HD static T value(T x) {
    return x * normal(x).cdf;
  }
  template <class T>
  ET_HD static T derivative(T x) {
    const Normal<T> n = normal(x);
    return n.cdf + x * n.density;
  }
};
struct GeluTanh {  // x/2 (1 + tanh(√(2/π)(x + 0.044715 x³))) = x σ(2√(2/π)(x + 0.044715 x³))
  template <class T>
  ET_HD static T inner(T x) {
    return T(2 * sqrt_2_over_pi) * (x + T(gelu_cubic) * x * x * x);
  }
  template <class T>
  ET_HD static T value(T x) {
    return x * sigmoid(inner(x));
  }
  template <class T>
  ET_HD static T derivative(T x) {
    const T s = sigmoid(inner(x));
    return s + x * s * (T(1) - s) * T(2 * sqrt_2_over_pi) * (T(1) + T(3 * gelu_cubic) * x * x);
  }
};
struct Softplus {
  template <class T>
  ET_HD static T value(T x) {
    return softplus(x);
  }
  template <class T>
  ET_HD static T derivative(T x) {
    return sigmoid(x);
  }
};
struct Elu {
  template <class T>
  ET_HD static T value(T x) {
    return x > 0 ? x : T(expm1(x));
  }
  template <class T>
  ET_HD static T derivative(T x) {
    return x > 0 ? T(1) : fast_exp(x);
  }
};
struct EluPlusOne {  // the feature map of linear attention: positive
  template <class T>
  ET_HD static T value(T x) {
    return x > 0 ? x + T(1) : fast_exp(x);
  }
  template <class T>
  ET_HD static T derivative(T x) {
    return x > 0 ? T(1) : fast_exp(x);
  }
};

template <class F>
struct Forward {
  template <class T>
  ET_HD T operator()(T x) const {
    return F::value(x);
  }
};
template <class F>
struct BackwardOf {
  template <class T>
  ET_HD T operator()(T x, T dy) const {
    return dy * F::derivative(x);
  }
};

/// body.operator()<F>() for the struct of f.
template <class Body>
void with_function(Unary f, Body&& body) {
  switch (f) {
    case Unary::neg:
      return body.template operator()<Neg>();
    case Unary::exp:
      return body.template operator()<Exp>();
    case Unary::relu:
      return body.template operator()<Relu>();
    case Unary::sigmoid:
      return body.template operator()<Sigmoid>();
    case Unary::silu:
      return body.template operator()<Silu>();
    case Unary::gelu:
      return body.template operator()<Gelu>();
    case Unary::gelu_tanh:
      return body.template operator()<GeluTanh>();
    case Unary::softplus:
      return body.template operator()<Softplus>();
    case Unary::elu:
      return body.template operator()<Elu>();
    case Unary::elu_plus_one:
      return body.template operator()<EluPlusOne>();
  }
}

}  // namespace

const char* name_of(Unary f) {
  constexpr const char* names[] = {"neg",  "exp",       "relu",     "sigmoid", "silu",
                                   "gelu", "gelu_tanh", "softplus", "elu",     "elu_plus_one"};
  return names[static_cast<int>(f)];
}

void unary(Context& ctx, Unary f, const Tensor& x, Tensor& y) {
  if (!(x.shape() == y.shape())) fail("unary: y is " + to_string(y) + ", x is " + to_string(x));
  dispatch_floating(ctx, "unary", x.dtype(), [&]<class T>() {
    with_function(f, [&]<class F>() { map_elements<T>(ctx, Forward<F>{}, std::array{x}, y); });
  });
}

void unary_backward(Context& ctx, Unary f, const Tensor& x, const Tensor& dy, Tensor& dx) {
  if (!(x.shape() == dy.shape() && x.shape() == dx.shape()))
    fail("unary_backward: x is " + to_string(x) + ", dy " + to_string(dy) + ", dx " + to_string(dx));
  dispatch_floating(ctx, "unary_backward", x.dtype(), [&]<class T>() {
    with_function(f, [&]<class F>() { map_elements<T>(ctx, BackwardOf<F>{}, std::array{x, dy}, dx); });
  });
}

}  // namespace eigentrace::kernels
