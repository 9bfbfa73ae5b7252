#pragma once
// The pointwise functions of kernels::Unary and their derivatives, for kernels.
#include "tensor/kernels.h"
#include "tensor/math.h"
#include "tensor/normal.h"

namespace eigentrace::kernels::functions {

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

/// body.operator()<F>() for the struct of f.
#ifdef __CUDACC__
#pragma nv_exec_check_disable  // on the host the body may be host code
#endif
template <class Body>
ET_HD void with_function(Unary f, Body&& body) {
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

}  // namespace eigentrace::kernels::functions
