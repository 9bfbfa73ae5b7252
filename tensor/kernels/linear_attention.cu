// Linear and norm attention as one op each, float32 on CUDA, N and P ≤ 128:
//   out_i = r_i y_i,  y_i = q_i Σ_{j≤i} k_jᵀ v_j;   linear: r_i = 1/η_i, η_i = q_i·Σ_{j≤i} k_j
//                                                   norm:   r_i = s exp(−f(x_i)), x = n + offset
// The factor enters the walks of ssd_walk.h, on y's rows and on dout's, so that no pass over [B, T, H, P] is
// spent on it, nor does anything keep y: what the normaliser's gradient needs is
//   δ_i = dout_i·y_i = q_i·Σ_{j≤i} (dout_i·v_j) k_j,
// a row product of dq before its factor.
//   linear: dη_i = −r_i² δ_i,  dq_i += dη_i Σ_{j≤i} k_j,  dk_j += Σ_{i≥j} dη_i q_i
//   norm:   dx_i = s g(x_i) δ_i,  doffset = Σ_{b,t} dx
// Saved against separate ops, forward and backward: five passes over [B, T, H, P] and the sums of two
// gradients of q and of k.
#include "tensor/dispatch.h"
#include "tensor/heads.h"
#include "tensor/kernels.h"
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/kernels/attention_normaliser_cuda.cuh"
#include "tensor/kernels/norm_function.h"
#include "tensor/kernels/ssd_run.cuh"
#endif

namespace eigentrace::kernels {
namespace {

void check(const char* what, const Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
           const Tensor& out, const Tensor& steps) {
  if (!attention_is_fused(ctx, q.dtype(), q.rank() == 4 ? q.dim(3) : 0, v.rank() == 4 ? v.dim(3) : 0))
    fail(std::string(what) + ": float32 on CUDA with N, P up to 128 expected, found " + to_string(q) + ", " +
         to_string(v) + "; use ssd and a normaliser");
  const bool good = q.rank() == 4 && v.rank() == 4 && q.shape() == k.shape() && v.shape() == out.shape() &&
                    q.shape().without(3) == v.shape().without(3) && steps.shape() == v.shape().without(3) &&
                    k.dtype() == q.dtype() && v.dtype() == q.dtype() && out.dtype() == q.dtype() &&
                    steps.dtype() == q.dtype();
  if (!good)
    fail(std::string(what) +
         ": q, k [B, T, H, N], v, out [B, T, H, P], a normaliser [B, T, H] of one type expected, found " +
         to_string(q) + ", " + to_string(k) + ", " + to_string(v) + ", " + to_string(out) + ", " +
         to_string(steps));
}

#ifdef EIGENTRACE_WITH_CUDA
StepFactor factor_of(const Tensor& log_eta, double scale) {
  return {PerStep<const float>(log_eta), static_cast<float>(scale), true};
}

/// log η = f(n + offset), row by row of [B, T, H].
struct LogEta {
  NormFunction f;
  int64_t steps, H;
  PerStep<const float> n, offset;
  PerStep<float> log_eta;
  ET_HD void operator()(int64_t i) const {
    const int64_t h = i % H, t = i / H % steps, b = i / H / steps;
    const float x = n.at(b, t, h) + (offset.data ? offset.at(b, t, h) : 0.0f);
    log_eta.at(b, t, h) = normaliser_value(f, x);
  }
};

/// dx = s g(x) δ into dn and, for doffset, into [B, T, H].
struct NormGradient {
  NormFunction f;
  float scale;
  int64_t steps, H;
  PerStep<const float> n, offset;
  RowDots dots;
  PerStep<float> dn, each;
  ET_HD void operator()(int64_t i) const {
    const int64_t h = i % H, t = i / H % steps, b = i / H / steps;
    const float x = n.at(b, t, h) + (offset.data ? offset.at(b, t, h) : 0.0f);
    const float dx = scale * normaliser_slope(f, x) * static_cast<float>(dots.at(i));
    if (dn.data) dn.at(b, t, h) = dx;
    if (each.data) each.at(b, t, h) = dx;
  }
};
#endif

}  // namespace

void linear_attention(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, Tensor& out,
                      Tensor& log_eta) {
  check("linear_attention", ctx, q, k, v, out, log_eta);
#ifdef EIGENTRACE_WITH_CUDA
  attention_normaliser(ctx, q, k, log_eta);
  if (out.numel() == 0) return;
  WalkExtras extras;
  extras.output = factor_of(log_eta, 1);
  run_fast(ctx, {q, k, v, {}, {}, out, {}, {}, {}, {}, {}, {}}, extras, false, [](const RowDots&) {});
#endif
}

void linear_attention_backward(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                               const Tensor& log_eta, const Tensor& dout, Tensor& dq, Tensor& dk,
                               Tensor& dv) {
  check("linear_attention_backward", ctx, dq.defined() ? dq : q, dk.defined() ? dk : k, dv.defined() ? dv : v,
        dout, log_eta);
#ifdef EIGENTRACE_WITH_CUDA
  if (dout.numel() == 0) return;
  const int64_t chunks = (q.dim(1) + sums_chunk - 1) / sums_chunk;
  const Tensor sums = ctx.empty({q.dim(0), q.dim(2), chunks, q.dim(3)}, q.dtype());
  WalkExtras extras;
  extras.output = factor_of(log_eta, 1);
  extras.wants_row_dots = dq.defined() || dk.defined();
  run_fast(ctx, {q, k, v, {}, {}, {}, dout, dq, dk, dv, {}, {}}, extras, false, [&](const RowDots& dots) {
    const auto add = [&]<SumsResult result>(const Tensor& x, const Tensor& to) {
      const SumsOperands<float> s{static_cast<int>(q.dim(1)),
                                  static_cast<int>(q.dim(2)),
                                  static_cast<int>(q.dim(3)),
                                  static_cast<int>(chunks),
                                  heads_of<float>(x, "linear_attention"),
                                  heads_of<float>(q, "linear_attention: q"),
                                  heads_of<float>(to, "linear_attention_backward"),
                                  PerStep<const float>(log_eta),
                                  {},
                                  {},
                                  sums.data<float>(),
                                  dots.sums,
                                  dots.parts,
                                  dots.part};
      running_sums<float, result>(ctx, q.dim(0), s);
    };
    if (dq.defined()) add.template operator()<SumsResult::scaled>(k, dq);
    if (dk.defined()) add.template operator()<SumsResult::suffix>(q, dk);
  });
#endif
}

void norm_attention(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, NormFunction f,
                    const Tensor& n, const Tensor& offset, double scale, Tensor& out, Tensor& log_eta) {
  check("norm_attention", ctx, q, k, v, out, log_eta);
  check("norm_attention", ctx, q, k, v, out, n);
#ifdef EIGENTRACE_WITH_CUDA
  if (out.numel() == 0) return;
  if (!ctx.dry())
    for_each_index(ctx, n.numel(),
                   LogEta{f, n.dim(1), n.dim(2), PerStep<const float>(n), PerStep<const float>(offset),
                          PerStep<float>(log_eta)});
  WalkExtras extras;
  extras.output = factor_of(log_eta, scale);
  run_fast(ctx, {q, k, v, {}, {}, out, {}, {}, {}, {}, {}, {}}, extras, false, [](const RowDots&) {});
#else
  (void)f, (void)offset, (void)scale;
#endif
}

void norm_attention_backward(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, NormFunction f,
                             const Tensor& n, const Tensor& offset, double scale, const Tensor& log_eta,
                             const Tensor& dout, Tensor& dq, Tensor& dk, Tensor& dv, Tensor& dn,
                             Tensor& doffset) {
  check("norm_attention_backward", ctx, dq.defined() ? dq : q, dk.defined() ? dk : k, dv.defined() ? dv : v,
        dout, dn.defined() ? dn : n);
#ifdef EIGENTRACE_WITH_CUDA
  if (dout.numel() == 0) return;
  const Tensor each = doffset.defined() ? ctx.empty(n.shape(), n.dtype()) : Tensor();
  WalkExtras extras;
  extras.output = factor_of(log_eta, scale);
  extras.wants_row_dots = dn.defined() || doffset.defined();
  run_fast(ctx, {q, k, v, {}, {}, {}, dout, dq, dk, dv, {}, {}}, extras, false, [&](const RowDots& dots) {
    if (!extras.wants_row_dots) return;
    for_each_index(
        ctx, n.numel(),
        NormGradient{f, static_cast<float>(scale), n.dim(1), n.dim(2), PerStep<const float>(n),
                     PerStep<const float>(offset), dots, PerStep<float>(dn), PerStep<float>(each)});
    if (doffset.defined())
      launch(ctx, head_sums_kernel<float>, static_cast<unsigned>(n.dim(2)), 1024, 1024 * sizeof(double),
             each.data<float>(), n.dim(0) * n.dim(1), n.dim(2), PerStep<float>(doffset));
  });
#else
  (void)f, (void)offset, (void)scale, (void)log_eta, (void)doffset;
#endif
}

}  // namespace eigentrace::kernels
