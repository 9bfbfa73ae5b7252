// Linear and norm attention as one op each, float32 on CUDA, N and P ≤ 128:
//   out_i = r_i y_i,  y_i = q_i Σ_{j≤i} k_jᵀ v_j;   linear: r_i = 1/η_i, η_i = q_i·Σ_{j≤i} k_j
//                                                   norm:   r_i = s exp(−f(x_i)), x = n + offset
// The kernels of ssd_chunks.h make η with y, and its gradient with those of q and k, so that nothing keeps y
// and no pass over [B, T, H, P] is spent on the normaliser. What its gradient needs is
//   δ_i = dout_i·y_i = q_i·Σ_{j≤i} (dout_i·v_j) k_j,
// a row product of dq before its factor.
//   linear: dη_i = −r_i² δ_i,  dq_i += dη_i Σ_{j≤i} k_j,  dk_j += Σ_{i≥j} dη_i q_i
//   norm:   dx_i = s g(x_i) δ_i,  doffset = Σ_{b,t} dx
#include "tensor/dispatch.h"
#include "tensor/float32_copies.h"
#include "tensor/heads.h"
#include "tensor/kernels.h"
#include "tensor/kernels/dropped_attention.h"
#include "tensor/kernels/elu_gradients.h"
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/kernels/norm_function.h"
#include "tensor/kernels/ssd_fast.cuh"
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
  const float* delta;
  PerStep<float> dn, each;
  ET_HD void operator()(int64_t i) const {
    const int64_t h = i % H, t = i / H % steps, b = i / H / steps;
    const float x = n.at(b, t, h) + (offset.data ? offset.at(b, t, h) : 0.0f);
    const float dx = scale * normaliser_slope(f, x) * delta[i];
    if (dn.data) dn.at(b, t, h) = dx;
    if (each.data) each.at(b, t, h) = dx;
  }
};
#endif

/// of_elu: dq and dk are the gradients of what q and k are elu + 1 of.
void linear_backward(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_eta,
                     const Tensor& dout, Tensor& dq, Tensor& dk, Tensor& dv,
                     [[maybe_unused]] const Tensor& kept, [[maybe_unused]] bool of_elu,
                     [[maybe_unused]] const Dropout& drop = {}) {
  check("linear_attention_backward", ctx, dq.defined() ? dq : q, dk.defined() ? dk : k, dv.defined() ? dv : v,
        dout, log_eta);
#ifdef EIGENTRACE_WITH_CUDA
  if (dout.numel() == 0) return;
  SsdExtras extras;
  extras.linear = true, extras.row = factor_of(log_eta, 1), extras.of_elu = of_elu;
  extras.drop = drop;
  run_fast(ctx, {q, k, v, {}, {}, {}, dout, dq, dk, dv, {}, {}}, extras, kept);
#endif
}

void norm_backward(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, NormFunction f,
                   const Tensor& n, const Tensor& offset, double scale, const Tensor& log_eta,
                   const Tensor& dout, Tensor& dq, Tensor& dk, Tensor& dv, Tensor& dn, Tensor& doffset,
                   [[maybe_unused]] const Tensor& kept, [[maybe_unused]] bool of_elu) {
  check("norm_attention_backward", ctx, dq.defined() ? dq : q, dk.defined() ? dk : k, dv.defined() ? dv : v,
        dout, dn.defined() ? dn : n);
#ifdef EIGENTRACE_WITH_CUDA
  if (dout.numel() == 0) return;
  const bool slopes = dn.defined() || doffset.defined();
  const Tensor each = doffset.defined() ? ctx.empty(n.shape(), n.dtype()) : Tensor();
  SsdExtras extras;
  extras.row = factor_of(log_eta, scale), extras.of_elu = of_elu;
  if (slopes) extras.delta = ctx.empty(n.shape(), n.dtype());
  run_fast(ctx, {q, k, v, {}, {}, {}, dout, dq, dk, dv, {}, {}}, extras, kept);
  if (!slopes || ctx.dry()) return;
  for_each_index(ctx, n.numel(),
                 NormGradient{f, static_cast<float>(scale), n.dim(1), n.dim(2), PerStep<const float>(n),
                              PerStep<const float>(offset), extras.delta.data<float>(), PerStep<float>(dn),
                              PerStep<float>(each)});
  if (doffset.defined())
    launch(ctx, head_sums_kernel<float>, static_cast<unsigned>(n.dim(2)), 1024, 1024 * sizeof(double),
           each.data<float>(), n.dim(0) * n.dim(1), n.dim(2), PerStep<float>(doffset));
#else
  (void)f, (void)offset, (void)scale, (void)log_eta, (void)doffset;
#endif
}

}  // namespace

void linear_attention(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, Tensor& out,
                      Tensor& log_eta, const Tensor& kept) {
  linear_attention_dropped(ctx, q, k, v, {}, out, log_eta, kept);
}

bool attention_drops(const Tensor& q, const Tensor& v) {
#ifdef EIGENTRACE_WITH_CUDA
  return y_can_drop(q, v);
#else
  return (void)q, (void)v, false;
#endif
}

void linear_attention_dropped(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                              const Dropout& drop, Tensor& out, Tensor& log_eta,
                              [[maybe_unused]] const Tensor& kept) {
  if (in_float32(ctx, linear_attention_dropped, q, k, v, drop, out, log_eta, kept)) return;
  check("linear_attention", ctx, q, k, v, out, log_eta);
  if (drop.p > 0 && !(attention_drops(q, v) && out.contiguous()))
    fail("linear_attention_dropped: N up to 16 and a dense result expected, found " + to_string(q) + ", " +
         to_string(out) + "; use dropout");
#ifdef EIGENTRACE_WITH_CUDA
  if (out.numel() == 0) return;
  SsdExtras extras;
  extras.linear = true, extras.log_eta = log_eta, extras.drop = drop;
  run_fast(ctx, {q, k, v, {}, {}, out, {}, {}, {}, {}, {}, {}}, extras, kept);
#endif
}

void linear_attention_backward(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                               const Tensor& log_eta, const Tensor& dout, Tensor& dq, Tensor& dk, Tensor& dv,
                               const Tensor& kept) {
  if (in_float32(ctx, linear_attention_backward, q, k, v, log_eta, dout, dq, dk, dv, kept)) return;
  linear_backward(ctx, q, k, v, log_eta, dout, dq, dk, dv, kept, false);
}

void linear_attention_dropped_backward(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                                       const Tensor& log_eta, const Dropout& drop, bool of_elu,
                                       const Tensor& dout, Tensor& dq, Tensor& dk, Tensor& dv,
                                       const Tensor& kept) {
  if (in_float32(ctx, linear_attention_dropped_backward, q, k, v, log_eta, drop, of_elu, dout, dq, dk, dv,
                 kept))
    return;
  linear_backward(ctx, q, k, v, log_eta, dout, dq, dk, dv, kept, of_elu, drop);
}

Tensor linear_attention_kept(Context& ctx, const Tensor& q, const Tensor& v) {
#ifdef EIGENTRACE_WITH_CUDA
  if (v.numel() > 0) return fast_kept(ctx, q, v, false, true);
#endif
  return (void)ctx, (void)q, (void)v, Tensor();
}

void norm_attention(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, NormFunction f,
                    const Tensor& n, const Tensor& offset, double scale, Tensor& out, Tensor& log_eta,
                    [[maybe_unused]] const Tensor& kept) {
  if (in_float32(ctx, norm_attention, q, k, v, f, n, offset, scale, out, log_eta, kept)) return;
  check("norm_attention", ctx, q, k, v, out, log_eta);
  check("norm_attention", ctx, q, k, v, out, n);
#ifdef EIGENTRACE_WITH_CUDA
  if (out.numel() == 0) return;
  if (!ctx.dry())
    for_each_index(ctx, n.numel(),
                   LogEta{f, n.dim(1), n.dim(2), PerStep<const float>(n), PerStep<const float>(offset),
                          PerStep<float>(log_eta)});
  SsdExtras extras;
  extras.row = factor_of(log_eta, scale);
  run_fast(ctx, {q, k, v, {}, {}, out, {}, {}, {}, {}, {}, {}}, extras, kept);
#else
  (void)f, (void)offset, (void)scale;
#endif
}

void norm_attention_backward(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, NormFunction f,
                             const Tensor& n, const Tensor& offset, double scale, const Tensor& log_eta,
                             const Tensor& dout, Tensor& dq, Tensor& dk, Tensor& dv, Tensor& dn,
                             Tensor& doffset, const Tensor& kept) {
  if (in_float32(ctx, norm_attention_backward, q, k, v, f, n, offset, scale, log_eta, dout, dq, dk, dv, dn,
                 doffset, kept))
    return;
  norm_backward(ctx, q, k, v, f, n, offset, scale, log_eta, dout, dq, dk, dv, dn, doffset, kept, false);
}

void norm_attention_elu_backward(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                                 NormFunction f, const Tensor& n, const Tensor& offset, double scale,
                                 const Tensor& log_eta, const Tensor& dout, Tensor& dx, Tensor& dz,
                                 Tensor& dv, Tensor& dn, Tensor& doffset, const Tensor& kept) {
  if (in_float32(ctx, norm_attention_elu_backward, q, k, v, f, n, offset, scale, log_eta, dout, dx, dz, dv,
                 dn, doffset, kept))
    return;
  norm_backward(ctx, q, k, v, f, n, offset, scale, log_eta, dout, dx, dz, dv, dn, doffset, kept, true);
}

}  // namespace eigentrace::kernels
