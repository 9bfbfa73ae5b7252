// Pointwise functions of one argument: y = f(x), dx = dy · f′(x), with x read again in the backward pass;
// alone or with the dropout that follows them, y = m f(x).
#include "tensor/dropout_stream.h"
#include "tensor/elements.h"
#include "tensor/functions.h"
#include "tensor/kernels.h"
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/kernels/shared_mask.cuh"
#endif

namespace eigentrace::kernels {
namespace {

using functions::with_function;

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

#ifdef EIGENTRACE_WITH_CUDA
/// bf16: one kernel for all functions, chosen per pack, instead of one each to compile.
struct AnyForward {
  Unary f;
  MaskedElements mask;  // time −1: none
  template <int width>
  ET_HD void pack(int64_t element, const Vec<float, width> (&x)[1], Vec<float, width> (&y)[1]) const {
    with_function(f, [&]<class F>() {
#pragma unroll
      for (int i = 0; i < width; ++i) y[0].x[i] = F::value(x[0].x[i]);
    });
    if (mask.time < 0) return;
    const Vec<float, width> m = mask.factors<float, width>(element);
#pragma unroll
    for (int i = 0; i < width; ++i) y[0].x[i] *= m.x[i];
  }
};
struct AnyBackward {
  Unary f;
  MaskedElements mask;
  template <int width>
  ET_HD void pack(int64_t element, const Vec<float, width> (&x)[2], Vec<float, width> (&y)[1]) const {
    with_function(f, [&]<class F>() {
#pragma unroll
      for (int i = 0; i < width; ++i) y[0].x[i] = x[1].x[i] * F::derivative(x[0].x[i]);
    });
    if (mask.time < 0) return;
    const Vec<float, width> m = mask.factors<float, width>(element);
#pragma unroll
    for (int i = 0; i < width; ++i) y[0].x[i] *= m.x[i];
  }
};

MaskedElements no_mask(const Context& ctx) { return {dropout_stream(ctx, 0, 0), -1, 1}; }
void any_forward(const Context& ctx, Unary f, const MaskedElements& mask, const Tensor& x, const Tensor& y) {
  map_elements_cuda<BFloat16>(ctx, AnyForward{f, mask}, std::array{x}, std::array{y});
}
void any_backward(const Context& ctx, Unary f, const MaskedElements& mask, const Tensor& x, const Tensor& dy,
                  const Tensor& dx) {
  map_elements_cuda<BFloat16>(ctx, AnyBackward{f, mask}, std::array{x, dy}, std::array{dx});
}

/// What has a kernel that draws a mask shared over time once for many steps: the study's case. Others draw it
/// for every element, which spares 76 kernels to compile.
template <class F, class T>
constexpr bool draws_once = sizeof(T) == 4 && std::is_same_v<F, functions::GeluTanh>;

template <class F>
struct Masked {
  MaskedElements mask;
  template <class T, int width>
  ET_HD void pack(int64_t element, const Vec<T, width> (&x)[1], Vec<T, width> (&y)[1]) const {
    y[0] = mask.template factors<T, width>(element);
#pragma unroll
    for (int i = 0; i < width; ++i) y[0].x[i] *= F::value(x[0].x[i]);
  }
};
template <class F>
struct MaskedBackward {
  MaskedElements mask;
  template <class T, int width>
  ET_HD void pack(int64_t element, const Vec<T, width> (&x)[2], Vec<T, width> (&y)[1]) const {
    y[0] = mask.template factors<T, width>(element);
#pragma unroll
    for (int i = 0; i < width; ++i) y[0].x[i] *= x[1].x[i] * F::derivative(x[0].x[i]);
  }
};
#endif

}  // namespace

const char* name_of(Unary f) {
  constexpr const char* names[] = {"neg",  "exp",       "relu",     "sigmoid", "silu",
                                   "gelu", "gelu_tanh", "softplus", "elu",     "elu_plus_one"};
  return names[static_cast<int>(f)];
}

void unary(Context& ctx, Unary f, const Tensor& x, Tensor& y) {
  if (!(x.shape() == y.shape())) fail("unary: y is " + to_string(y) + ", x is " + to_string(x));
  dispatch_stored(ctx, "unary", x.dtype(), [&]<class T>() {
#ifdef EIGENTRACE_WITH_CUDA
    if constexpr (std::is_same_v<T, BFloat16>)
      any_forward(ctx, f, no_mask(ctx), x, y);
    else
#endif
      with_function(f, [&]<class F>() { map_elements<T>(ctx, Forward<F>{}, std::array{x}, y); });
  });
}

void unary_backward(Context& ctx, Unary f, const Tensor& x, const Tensor& dy, Tensor& dx) {
  if (!(x.shape() == dy.shape() && x.shape() == dx.shape()))
    fail("unary_backward: x is " + to_string(x) + ", dy " + to_string(dy) + ", dx " + to_string(dx));
  dispatch_stored(ctx, "unary_backward", x.dtype(), [&]<class T>() {
#ifdef EIGENTRACE_WITH_CUDA
    if constexpr (std::is_same_v<T, BFloat16>)
      any_backward(ctx, f, no_mask(ctx), x, dy, dx);
    else
#endif
      with_function(f, [&]<class F>() { map_elements<T>(ctx, BackwardOf<F>{}, std::array{x, dy}, dx); });
  });
}

void activation(Context& ctx, Unary f, const Tensor& x, const Dropout& drop, Tensor& y) {
  if (drop.p == 0) return unary(ctx, f, x, y);
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda()) {
    const MaskedElements mask = masked_elements(ctx, drop, x);
    return dispatch_stored(ctx, "activation", x.dtype(), [&]<class T>() {
      if constexpr (std::is_same_v<T, BFloat16>)
        any_forward(ctx, f, mask, x, y);
      else
        with_function(f, [&]<class F>() {
          if constexpr (draws_once<F, T>)
            if (drop.shared_over_time && map_shared_mask<T>(ctx, Forward<F>{}, std::array{x}, y, mask.stream))
              return;
          map_elements_cuda<T>(ctx, Masked<F>{mask}, std::array{x}, std::array{y});
        });
    });
  }
#endif
  unary(ctx, f, x, y);
  dropout(ctx, y, drop.p, drop.op, drop.shared_over_time, y);
}

void activation_backward(Context& ctx, Unary f, const Tensor& x, const Dropout& drop, const Tensor& dy,
                         Tensor& dx) {
  if (drop.p == 0) return unary_backward(ctx, f, x, dy, dx);
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda()) {
    const MaskedElements mask = masked_elements(ctx, drop, x);
    return dispatch_stored(ctx, "activation_backward", x.dtype(), [&]<class T>() {
      if constexpr (std::is_same_v<T, BFloat16>)
        any_backward(ctx, f, mask, x, dy, dx);
      else
        with_function(f, [&]<class F>() {
          if constexpr (draws_once<F, T>)
            if (drop.shared_over_time &&
                map_shared_mask<T>(ctx, BackwardOf<F>{}, std::array{x, dy}, dx, mask.stream))
              return;
          map_elements_cuda<T>(ctx, MaskedBackward<F>{mask}, std::array{x, dy}, std::array{dx});
        });
    });
  }
#endif
  dropout(ctx, dy, drop.p, drop.op, drop.shared_over_time, dx);
  unary_backward(ctx, f, x, dx, dx);
}

}  // namespace eigentrace::kernels
