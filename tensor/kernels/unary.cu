// Pointwise functions of one argument: y = f(x), dx = dy · f′(x), with x read again in the backward pass;
// alone or with the dropout that follows them, y = m f(x).
#include "tensor/dropout_stream.h"
#include "tensor/elements.h"
#include "tensor/functions.h"
#include "tensor/kernels.h"
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/kernels/element_mask.cuh"
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
/// One kernel for all functions and masks, chosen per pack: what a pack waits for is memory, and 76 kernels
/// need not be compiled.
struct AnyForward {
  Unary f;
  MaskedElements mask;  // time −1: none
  template <class T, int width>
  ET_HD void pack(int64_t element, const Vec<T, width> (&x)[1], Vec<T, width> (&y)[1]) const {
    with_function(f, [&]<class F>() {
#pragma unroll
      for (int i = 0; i < width; ++i) y[0].x[i] = F::value(x[0].x[i]);
    });
    if (mask.time < 0) return;
    const Vec<T, width> m = mask.template factors<T, width>(element);
#pragma unroll
    for (int i = 0; i < width; ++i) y[0].x[i] *= m.x[i];
  }
};
struct AnyBackward {
  Unary f;
  MaskedElements mask;
  template <class T, int width>
  ET_HD void pack(int64_t element, const Vec<T, width> (&x)[2], Vec<T, width> (&y)[1]) const {
    with_function(f, [&]<class F>() {
#pragma unroll
      for (int i = 0; i < width; ++i) y[0].x[i] = x[1].x[i] * F::derivative(x[0].x[i]);
    });
    if (mask.time < 0) return;
    const Vec<T, width> m = mask.template factors<T, width>(element);
#pragma unroll
    for (int i = 0; i < width; ++i) y[0].x[i] *= m.x[i];
  }
};

/// What has kernels of its own: the study's functions between products (elu + 1 at MQAR on an H200: 18 µs,
/// in the common kernel 23).
template <class F, class T>
constexpr bool stands_alone = std::is_same_v<T, float> && (std::is_same_v<F, functions::Gelu> ||
                                                           std::is_same_v<F, functions::EluPlusOne>);

MaskedElements no_mask(const Context& ctx) { return {dropout_stream(ctx, 0, 0), -1, 1}; }

/// The study's cases have kernels that draw no mask twice: one shared over time with GELU's tanh form, one an
/// element with GELU. False: another case, nothing done.
template <class T, template <class> class Map, size_t inputs>
bool map_masked(const Context& ctx, Unary f, const std::array<Tensor, inputs>& x, const Tensor& y,
                const MaskedElements& mask) {
  if constexpr (std::is_same_v<T, float>) {
    if (mask.time == 0 && f == Unary::gelu)
      return map_element_mask(ctx, Map<functions::Gelu>{}, x, y, mask.stream);
    if (mask.time > 0 && f == Unary::gelu_tanh)
      return map_shared_mask<float>(ctx, Map<functions::GeluTanh>{}, x, y, mask.stream);
  }
  return false;
}
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
    if (ctx.device().is_cuda())
      return with_function(f, [&]<class F>() {
        if constexpr (stands_alone<F, T>)
          map_elements_cuda<T>(ctx, Forward<F>{}, std::array{x}, std::array{y});
        else
          map_elements_cuda<T>(ctx, AnyForward{f, no_mask(ctx)}, std::array{x}, std::array{y});
      });
#endif
    with_function(f, [&]<class F>() { map_elements_cpu<T>(ctx, Forward<F>{}, std::array{x}, y); });
  });
}

void unary_backward(Context& ctx, Unary f, const Tensor& x, const Tensor& dy, Tensor& dx) {
  if (!(x.shape() == dy.shape() && x.shape() == dx.shape()))
    fail("unary_backward: x is " + to_string(x) + ", dy " + to_string(dy) + ", dx " + to_string(dx));
  dispatch_stored(ctx, "unary_backward", x.dtype(), [&]<class T>() {
#ifdef EIGENTRACE_WITH_CUDA
    if (ctx.device().is_cuda())
      return with_function(f, [&]<class F>() {
        if constexpr (stands_alone<F, T>)
          map_elements_cuda<T>(ctx, BackwardOf<F>{}, std::array{x, dy}, std::array{dx});
        else
          map_elements_cuda<T>(ctx, AnyBackward{f, no_mask(ctx)}, std::array{x, dy}, std::array{dx});
      });
#endif
    with_function(f, [&]<class F>() { map_elements_cpu<T>(ctx, BackwardOf<F>{}, std::array{x, dy}, dx); });
  });
}

void activation(Context& ctx, Unary f, const Tensor& x, const Dropout& drop, Tensor& y) {
  if (drop.p == 0) return unary(ctx, f, x, y);
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda()) {
    const MaskedElements mask = masked_elements(ctx, drop, x);
    return dispatch_stored(ctx, "activation", x.dtype(), [&]<class T>() {
      if (map_masked<T, Forward>(ctx, f, std::array{x}, y, mask)) return;
      map_elements_cuda<T>(ctx, AnyForward{f, mask}, std::array{x}, std::array{y});
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
      if (map_masked<T, BackwardOf>(ctx, f, std::array{x, dy}, dx, mask)) return;
      map_elements_cuda<T>(ctx, AnyBackward{f, mask}, std::array{x, dy}, std::array{dx});
    });
  }
#endif
  dropout(ctx, dy, drop.p, drop.op, drop.shared_over_time, dx);
  unary_backward(ctx, f, x, dx, dx);
}

}  // namespace eigentrace::kernels
