// From a diagonal continuous system to a discrete one (S5, arXiv 2208.04933, eq. 6), per state, Δ =
// exp(log_step), z = ΛΔ, w = log λ, f the factor of B:
//
//   zero-order hold   w = z,                            f = (e^z − 1)/Λ
//   bilinear          w = log((1 + z/2)/(1 − z/2)),     f = Δ/(1 − z/2)
//
// Both are analytic in Λ, so with gradients written dRe + i dIm: dΛ = conj(∂w/∂Λ) dw + conj(∂f/∂Λ) df, and
// dlog_step = Δ Re(conj(dw) ∂w/∂Δ + conj(df) ∂f/∂Δ). [N] numbers: computed in double, whatever the element
// type.
#include <cmath>

#include "tensor/cplx.h"
#include "tensor/dispatch.h"
#include "tensor/kernels.h"

namespace eigentrace::kernels {
namespace {

using C = cplx<double>;
constexpr double largest_real_part = -1e-4;

struct State {
  C w, f;
  C w_lambda, w_step, f_lambda, f_step;  // partial derivatives
};

/// e^z − 1 without cancellation near z = 0.
ET_HD C expm1_of(const C& z) {
  const double half_sine = sin(z.im / 2);
  return {expm1(z.re) * cos(z.im) - 2 * half_sine * half_sine, exp(z.re) * sin(z.im)};
}

ET_HD State discretise(bool bilinear, const C& lambda, double step) {
  const C z = step * lambda;
  State s;
  if (bilinear) {
    const C up{1 + z.re / 2, z.im / 2}, down{1 - z.re / 2, -z.im / 2};
    const C inverse = reciprocal(down), inverse_up = reciprocal(up);
    // |up|²/|down|² = 1 + 2 Re z/|down|²
    s.w = {0.5 * log1p(2 * z.re / norm(down)), atan2(up.im, up.re) - atan2(down.im, down.re)};
    s.f = step * inverse;
    const C slope = inverse * inverse_up;  // dw/dz
    s.w_lambda = step * slope, s.w_step = lambda * slope;
    s.f_lambda = (step * step / 2) * (inverse * inverse), s.f_step = inverse * inverse;
  } else {
    const C grown = expm1_of(z), inverse = reciprocal(lambda);
    s.w = z;
    s.f = grown * inverse;
    s.w_lambda = {step, 0}, s.w_step = lambda;
    s.f_step = {1 + grown.re, grown.im};
    s.f_lambda = (step * s.f_step - s.f) * inverse;
  }
  return s;
}

template <class T>
struct Forward {
  Discretisation how;
  const T *re, *im, *log_step;
  T *log_abs, *arg, *f_re, *f_im;
  ET_HD void operator()(int64_t n) const {
    C lambda{static_cast<double>(re[n]), static_cast<double>(im[n])};
    if (how.clip && lambda.re > largest_real_part) lambda.re = largest_real_part;
    const State s = discretise(how.bilinear, lambda, exp(static_cast<double>(log_step[n])));
    log_abs[n] = static_cast<T>(s.w.re), arg[n] = static_cast<T>(s.w.im);
    f_re[n] = static_cast<T>(s.f.re), f_im[n] = static_cast<T>(s.f.im);
  }
};

template <class T>
struct BackwardOf {
  Discretisation how;
  const T *re, *im, *log_step, *dlog_abs, *darg, *df_re, *df_im;
  T *dre, *dim, *dlog_step;
  ET_HD void operator()(int64_t n) const {
    C lambda{static_cast<double>(re[n]), static_cast<double>(im[n])};
    const bool clipped = how.clip && lambda.re > largest_real_part;
    if (clipped) lambda.re = largest_real_part;
    const double step = exp(static_cast<double>(log_step[n]));
    const State s = discretise(how.bilinear, lambda, step);
    const C dw{static_cast<double>(dlog_abs[n]), static_cast<double>(darg[n])};
    const C df{static_cast<double>(df_re[n]), static_cast<double>(df_im[n])};
    const C dlambda = conj(s.w_lambda) * dw + conj(s.f_lambda) * df;
    dre[n] = clipped ? T(0) : static_cast<T>(dlambda.re);
    dim[n] = static_cast<T>(dlambda.im);
    dlog_step[n] = static_cast<T>(step * (real_dot(dw, s.w_step) + real_dot(df, s.f_step)));
  }
};

}  // namespace

void s5_discretise(Context& ctx, Discretisation how, const Tensor& lambda_re, const Tensor& lambda_im,
                   const Tensor& log_step, Tensor& log_abs, Tensor& arg, Tensor& f_re, Tensor& f_im) {
  dispatch_floating(ctx, "s5_discretise", lambda_re.dtype(), [&]<class T>() {
    for_each_index(ctx, lambda_re.numel(),
                   Forward<T>{how, lambda_re.data<T>(), lambda_im.data<T>(), log_step.data<T>(),
                              log_abs.data<T>(), arg.data<T>(), f_re.data<T>(), f_im.data<T>()});
  });
}

void s5_discretise_backward(Context& ctx, Discretisation how, const Tensor& lambda_re,
                            const Tensor& lambda_im, const Tensor& log_step, const Tensor (&dy)[4],
                            Tensor (&dx)[3]) {
  dispatch_floating(ctx, "s5_discretise_backward", lambda_re.dtype(), [&]<class T>() {
    for_each_index(ctx, lambda_re.numel(),
                   BackwardOf<T>{how, lambda_re.data<T>(), lambda_im.data<T>(), log_step.data<T>(),
                                 dy[0].data<T>(), dy[1].data<T>(), dy[2].data<T>(), dy[3].data<T>(),
                                 dx[0].data<T>(), dx[1].data<T>(), dx[2].data<T>()});
  });
}

}  // namespace eigentrace::kernels
