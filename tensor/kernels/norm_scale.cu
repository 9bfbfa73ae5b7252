// The normaliser of norm attention, a function of the input alone: x = n + offset,
//   log η = f(x),  out = s exp(−f(x)) y
//   dy = s exp(−f(x)) dout,  dx = s g(x) (dout·y),  g(x) = −f′(x) exp(−f(x)),  doffset = Σ_{b,t} dx
#include "tensor/dispatch.h"
#include "tensor/float32_copies.h"
#include "tensor/heads.h"
#include "tensor/kernels.h"
#include "tensor/kernels/norm_function.h"
#include "tensor/kernels/row_scale.cuh"
#include "tensor/math.h"

namespace eigentrace::kernels {
namespace {

template <class T>
struct NormScale {
  NormFunction f;
  T scale;
  int64_t B, steps, H, P;
  Heads<T> y;
  PerStep<const T> n, offset;

  NormScale(NormFunction function, double s, const Tensor& y_in, const Tensor& n_in, const Tensor& offset_in)
      : f(function),
        scale(static_cast<T>(s)),
        B(y_in.dim(0)),
        steps(y_in.dim(1)),
        H(y_in.dim(2)),
        P(y_in.dim(3)),
        y(heads_of<T>(y_in, "norm_scale: y")),
        n(n_in),
        offset(offset_in) {}

  T x(int64_t b, int64_t t, int64_t h) const {
    return n.at(b, t, h) + (offset.data ? offset.at(b, t, h) : T(0));
  }

  /// to = s exp(−f) from
  void apply(const Heads<T>& from, const Heads<T>& to, const PerStep<T>* log_eta) const {
    parallel_rows(B * steps, [&](int64_t bt) {
      const int64_t b = bt / steps, t = bt % steps;
      for (int64_t h = 0; h < H; ++h) {
        const T own = normaliser_value(f, x(b, t, h)), factor = scale * fast_exp(-own),
                *row = from.rows(b, h, t).data;
        T* out = to.rows(b, h, t).data;
        if (log_eta) log_eta->at(b, t, h) = own;
#pragma omp simd
        for (int64_t p = 0; p < P; ++p) out[p] = factor * row[p];
      }
    });
  }

  /// dx, per step and head
  void slopes(const Heads<T>& dout, T* dx) const {
    parallel_rows(B * steps, [&](int64_t bt) {
      const int64_t b = bt / steps, t = bt % steps;
      for (int64_t h = 0; h < H; ++h) {
        const T *a = dout.rows(b, h, t).data, *c = y.rows(b, h, t).data;
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t p = 0; p < P; ++p) sum += a[p] * c[p];
        dx[bt * H + h] = scale * normaliser_slope(f, x(b, t, h)) * sum;
      }
    });
  }
};

#ifdef EIGENTRACE_WITH_CUDA
/// s exp(−f) y and log η; in the backward pass dx = s g(x) (dout·y), into dn and into [B, T, H] for doffset.
template <class T>
struct NormScaleRows {
  NormFunction f;
  T scale;
  PerStep<const T> n, offset;
  PerStep<T> log_eta, dn, dx;

  ET_HD T x(int64_t b, int64_t t, int64_t h) const {
    return n.at(b, t, h) + (offset.data ? offset.at(b, t, h) : T(0));
  }
  ET_HD T factor(int64_t b, int64_t t, int64_t h) const {
    return scale * fast_exp(-normaliser_value(f, x(b, t, h)));
  }
  ET_HD void dot(int64_t b, int64_t t, int64_t h, T sum) const {
    const T result = scale * normaliser_slope(f, x(b, t, h)) * sum;
    if (dn.data) dn.at(b, t, h) = result;
    if (dx.data) dx.at(b, t, h) = result;
  }
  ET_HD void row(int64_t b, int64_t t, int64_t h) const {
    if (log_eta.data) log_eta.at(b, t, h) = normaliser_value(f, x(b, t, h));
  }
};
#endif

void check(const char* what, const Tensor& y, const Tensor& n, const Tensor& offset, const Tensor& out) {
  const bool good =
      y.rank() == 4 && y.shape() == out.shape() && n.shape() == y.shape().without(3) &&
      (!offset.defined() || (offset.shape() == Shape{y.dim(2)} && offset.dtype() == y.dtype())) &&
      y.dtype() == out.dtype() && y.dtype() == n.dtype();
  if (!good)
    fail(std::string(what) + ": y [B, T, H, P], n [B, T, H], offset [H] of one type expected, found " +
         to_string(y) + ", " + to_string(n) + (offset.defined() ? ", " + to_string(offset) : "") + ", " +
         to_string(out));
}

}  // namespace

void norm_scale(Context& ctx, const Tensor& y, NormFunction f, const Tensor& n, const Tensor& offset,
                double scale, Tensor& out, Tensor& log_eta) {
  if (in_float32(ctx, norm_scale, y, f, n, offset, scale, out, log_eta)) return;
  check("norm_scale", y, n, offset, out);
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda())
    return dispatch_floating(ctx, "norm_scale", y.dtype(), [&]<class T>() {
      row_scale<T>(ctx, y.dim(0), y.dim(1), y.dim(2), y.dim(3), heads_of<T>(y, "norm_scale: y"), {},
                   heads_of<T>(out, "norm_scale: out"),
                   NormScaleRows<T>{f, static_cast<T>(scale), PerStep<const T>(n), PerStep<const T>(offset),
                                    PerStep<T>(log_eta), PerStep<T>{}, PerStep<T>{}});
    });
#endif
  require_cpu(ctx, "norm_scale");
  dispatch_floating(ctx, "norm_scale", y.dtype(), [&]<class T>() {
    const NormScale<T> body(f, scale, y, n, offset);
    const PerStep<T> eta(log_eta);
    body.apply(body.y, heads_of<T>(out, "norm_scale: out"), &eta);
  });
}

void norm_scale_backward(Context& ctx, const Tensor& y, NormFunction f, const Tensor& n, const Tensor& offset,
                         double scale, const Tensor& dout, Tensor& dy, Tensor& dn, Tensor& doffset) {
  if (in_float32(ctx, norm_scale_backward, y, f, n, offset, scale, dout, dy, dn, doffset)) return;
  check("norm_scale_backward", y, n, offset, dout);
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda()) {
    const Tensor each = doffset.defined() ? ctx.empty(n.shape(), n.dtype()) : Tensor();
    return dispatch_floating(ctx, "norm_scale_backward", y.dtype(), [&]<class T>() {
      const char* name = "norm_scale_backward";
      const bool slopes = dn.defined() || doffset.defined();
      row_scale<T>(ctx, y.dim(0), y.dim(1), y.dim(2), y.dim(3), heads_of<T>(dout, name),
                   slopes ? heads_of<T>(y, name) : Heads<T>{},
                   dy.defined() ? heads_of<T>(dy, name) : Heads<T>{},
                   NormScaleRows<T>{f, static_cast<T>(scale), PerStep<const T>(n), PerStep<const T>(offset),
                                    PerStep<T>{}, PerStep<T>(dn), PerStep<T>(each)});
      if (doffset.defined())
        launch(ctx, head_sums_kernel<T>, static_cast<unsigned>(y.dim(2)), 1024, 1024 * sizeof(double),
               each.data<T>(), y.dim(0) * y.dim(1), y.dim(2), PerStep<T>(doffset));
    });
  }
#endif
  require_cpu(ctx, "norm_scale_backward");
  Tensor dx = ctx.empty(n.shape(), n.dtype());
  dispatch_floating(ctx, "norm_scale_backward", y.dtype(), [&]<class T>() {
    const NormScale<T> body(f, scale, y, n, offset);
    const Heads<T> cotangent = heads_of<T>(dout, "norm_scale_backward: dout");
    if (dy.defined()) body.apply(cotangent, heads_of<T>(dy, "norm_scale_backward: dy"), nullptr);
    if (!dn.defined() && !doffset.defined()) return;
    body.slopes(cotangent, dx.data<T>());
    if (doffset.defined()) {
      const PerStep<T> to(doffset);
      const T* from = dx.data<T>();
      parallel_rows(body.H, [&](int64_t h) {
        double sum = 0;
        for (int64_t bt = 0; bt < body.B * body.steps; ++bt)
          sum += static_cast<double>(from[bt * body.H + h]);
        to.at(0, 0, h) = static_cast<T>(sum);
      });
    }
  });
  if (dn.defined()) copy(ctx, dx, dn);
}

}  // namespace eigentrace::kernels
