#include "autograd/ops_attention.h"

#include "autograd/ops_loss.h"
#include "autograd/ops_pointwise.h"
#include "autograd/ops_shape.h"
#include "tensor/error.h"
#include "tensor/kernels.h"
#include "tensor/kernels/dropped_attention.h"
#include "tensor/kernels/elu_gradients.h"

namespace eigentrace {

Attended softmax_attention(const Var& q, const Var& k, const Var& v, double scale, double dropout,
                           const Labels* labels, bool rows_alone) {
  if (q.rank() != 4 || v.rank() != 4)
    fail("softmax_attention: q [B, T, H, N] and v [B, T, H, P] expected, found " + to_string(q.value()) +
         ", " + to_string(v.value()));
  Tape& tape = q.tape();
  Context& ctx = tape.ctx();
  const uint32_t op = dropout > 0 ? tape.next_random_op() : 0;
  const auto commit = [=](Backward& b, const Tensor& dq, const Tensor& dk, const Tensor& dv) {
    b.commit(q.ref(), dq), b.commit(k.ref(), dk), b.commit(v.ref(), dv);
  };
  Attended out;
  Tensor y;
  const int64_t M = labels ? labels->labels.numel() : 0;
  if (!labels || !rows_alone || !kernels::attends_rows_alone(ctx, q.value(), v.value(), scale, dropout, M)) {
    y = ctx.empty(v.shape(), v.dtype());
    out.lse = ctx.empty(q.shape().without(3), arithmetic_type(q.dtype()));
    kernels::softmax_attention(ctx, q.value(), k.value(), v.value(), scale, dropout, op, y, out.lse);
    out.y = tape.record(Op::softmax_attention, y, {q, k, v}, [=, lse = out.lse](Backward& b) {
      Tensor dq = b.destination(q.ref()), dk = b.destination(k.ref()), dv = b.destination(v.ref());
      kernels::softmax_attention_backward(b.ctx(), q.value(), k.value(), v.value(), y, lse, b.dy(), scale,
                                          dropout, op, dq, dk, dv);
      commit(b, dq, dk, dv);
    });
  }
  if (!labels) return out;
  Tensor rows = ctx.empty({1, M, v.dim(2), v.dim(3)}, v.dtype());
  const kernels::AttendedRows kept = kernels::attended_rows(
      ctx, q.value(), k.value(), v.value(), scale, dropout, y, out.lse, rows_of_labels(*labels), rows);
  out.rows = tape.record(Op::attended_rows, rows, {q, k, v}, [=, labels = *labels](Backward& b) {
    Tensor dq = b.destination(q.ref()), dk = b.destination(k.ref()), dv = b.destination(v.ref());
    kernels::attended_rows_backward(b.ctx(), q.value(), k.value(), v.value(), kept, b.dy(),
                                    rows_of_labels(labels), scale, dropout, op, dq, dk, dv);
    commit(b, dq, dk, dv);
  });
  return out;
}

namespace {

bool fused(const Var& q, const Var& v) {
  return q.rank() == 4 && v.rank() == 4 &&
         kernels::attention_is_fused(q.ctx(), arithmetic_type(q.dtype()), q.dim(3), v.dim(3));
}

}  // namespace

Var ssd(const Var& q, const Var& k, const Var& v, const Var& log_a, const Var& w, const Var& skip) {
  Context& ctx = q.ctx();
  const auto keep = [&] {
    return q.tape().recording() ? kernels::ssd_kept(ctx, q.value(), v.value(), log_a.value(), w.value())
                                : Tensor();
  };
  if (skip.defined() && fused(q, v)) {
    Tensor y = ctx.empty(v.shape(), v.dtype());
    const Tensor kept = keep();
    kernels::ssd_skip(ctx, q.value(), k.value(), v.value(), log_a.value(), w.value(), skip.value(), y, kept);
    return q.tape().record(Op::ssd, y, {q, k, v, log_a, w, skip}, [=](Backward& b) {
      Tensor dq = b.destination(q.ref()), dk = b.destination(k.ref()), dv = b.destination(v.ref()),
             dlog_a = b.destination(log_a.ref()), dw = b.destination(w.ref()),
             dskip = b.destination(skip.ref());
      kernels::ssd_skip_backward(b.ctx(), q.value(), k.value(), v.value(), log_a.value(), w.value(),
                                 skip.value(), b.dy(), dq, dk, dv, dlog_a, dw, dskip, kept);
      b.commit(q.ref(), dq), b.commit(k.ref(), dk), b.commit(v.ref(), dv);
      b.commit(log_a.ref(), dlog_a), b.commit(w.ref(), dw), b.commit(skip.ref(), dskip);
    });
  }
  Tensor y = ctx.empty(v.shape(), v.dtype());
  const Tensor kept = keep();
  kernels::ssd(ctx, q.value(), k.value(), v.value(), log_a.value(), w.value(), y, kept);
  Var result = q.tape().record(Op::ssd, y, {q, k, v, log_a, w}, [=](Backward& b) {
    Tensor dq = b.destination(q.ref()), dk = b.destination(k.ref()), dv = b.destination(v.ref()),
           dlog_a = b.destination(log_a.ref()), dw = b.destination(w.ref());
    kernels::ssd_backward(b.ctx(), q.value(), k.value(), v.value(), log_a.value(), w.value(), b.dy(), dq, dk,
                          dv, dlog_a, dw, kept);
    b.commit(q.ref(), dq), b.commit(k.ref(), dk), b.commit(v.ref(), dv);
    b.commit(log_a.ref(), dlog_a), b.commit(w.ref(), dw);
  });
  if (!skip.defined()) return result;
  return cast(add(widen(result), mul(widen(v), reshape(skip, {skip.dim(0), 1}))), v.dtype());
}

Var attention_normaliser(const Var& q, const Var& k) {
  if (q.rank() != 4) fail("attention_normaliser: q [B, T, H, N] expected, found " + to_string(q.value()));
  Tensor log_eta = q.ctx().empty(q.shape().without(3), arithmetic_type(q.dtype()));
  kernels::attention_normaliser(q.ctx(), q.value(), k.value(), log_eta);
  return q.tape().record(Op::attention_normaliser, log_eta, {q, k}, [=](Backward& b) {
    Tensor dq = b.destination(q.ref()), dk = b.destination(k.ref());
    kernels::attention_normaliser_backward(b.ctx(), q.value(), k.value(), log_eta, b.dy(), dq, dk);
    b.commit(q.ref(), dq), b.commit(k.ref(), dk);
  });
}

Var divide_by_eta(const Var& y, const Var& log_eta) {
  Tensor out = y.ctx().empty(y.shape(), y.dtype());
  kernels::divide_by_eta(y.ctx(), y.value(), log_eta.value(), out);
  return y.tape().record(
      Op::divide_by_eta, out, {y.ref(), log_eta.ref()}, [y = y.ref(), log_eta, out](Backward& b) {
        Tensor dy = b.destination(y), dlog_eta = b.destination(log_eta.ref());
        kernels::divide_by_eta_backward(b.ctx(), out, log_eta.value(), b.dy(), dy, dlog_eta);
        b.commit(y, dy), b.commit(log_eta.ref(), dlog_eta);
      });
}

NormScaled norm_scale(const Var& y, NormFunction f, const Var& n, const Var& offset, double scale) {
  Context& ctx = y.ctx();
  Tensor out = ctx.empty(y.shape(), y.dtype()), log_eta = ctx.empty(n.shape(), n.dtype());
  kernels::norm_scale(ctx, y.value(), f, n.value(), offset.value(), scale, out, log_eta);
  const Var result = y.tape().record(Op::norm_scale, out, {y, n, offset}, [=](Backward& b) {
    Tensor dy = b.destination(y.ref()), dn = b.destination(n.ref()), doffset = b.destination(offset.ref());
    kernels::norm_scale_backward(b.ctx(), y.value(), f, n.value(), offset.value(), scale, b.dy(), dy, dn,
                                 doffset);
    b.commit(y.ref(), dy), b.commit(n.ref(), dn), b.commit(offset.ref(), doffset);
  });
  return {result, log_eta};
}

Normalised linear_attention(const Var& q, const Var& k, const Var& v, const EluOf& of, double dropout) {
  if (!fused(q, v)) {
    const Var log_eta = attention_normaliser(q, k);
    return {eigentrace::dropout(divide_by_eta(ssd(q, k, v, {}, {}), log_eta), dropout), log_eta.value()};
  }
  if (dropout > 0 && !kernels::attention_drops(q.value(), v.value())) {
    const Normalised all = linear_attention(q, k, v, of);
    return {eigentrace::dropout(all.y, dropout), all.log_eta};
  }
  Context& ctx = q.ctx();
  Tensor y = ctx.empty(v.shape(), v.dtype()),
         log_eta = ctx.empty(v.shape().without(3), arithmetic_type(v.dtype()));
  Tensor kept;
  kernels::Dropout drop;
  if (dropout > 0) drop = {dropout, q.tape().next_random_op()};
  if (q.tape().recording()) kept = kernels::linear_attention_kept(ctx, q.value(), v.value());
  kernels::linear_attention_dropped(ctx, q.value(), k.value(), v.value(), drop, y, log_eta, kept);
  const bool elu = of.x.defined();
  const VarRef x = elu ? of.x.ref() : q.ref(), z = elu ? of.z.ref() : k.ref();
  const Var result = q.tape().record(Op::linear_attention, y, {x, z, v.ref()}, [=](Backward& b) {
    Tensor dx = b.destination(x), dz = b.destination(z), dv = b.destination(v.ref());
    kernels::linear_attention_dropped_backward(b.ctx(), q.value(), k.value(), v.value(), log_eta, drop, elu,
                                               b.dy(), dx, dz, dv, kept);
    b.commit(x, dx), b.commit(z, dz), b.commit(v.ref(), dv);
  });
  return {result, log_eta};
}

Normalised norm_attention(const Var& q, const Var& k, const Var& v, NormFunction f, const Var& n,
                          const Var& offset, double scale, const EluOf& of) {
  if (!fused(q, v)) {
    const NormScaled scaled = norm_scale(ssd(q, k, v, {}, {}), f, n, offset, scale);
    return {scaled.y, scaled.log_eta};
  }
  Context& ctx = q.ctx();
  Tensor y = ctx.empty(v.shape(), v.dtype()), log_eta = ctx.empty(n.shape(), n.dtype());
  Tensor kept;
  if (q.tape().recording()) kept = kernels::ssd_kept(ctx, q.value(), v.value(), {}, {});
  kernels::norm_attention(ctx, q.value(), k.value(), v.value(), f, n.value(), offset.value(), scale, y,
                          log_eta, kept);
  const bool elu = of.x.defined();
  const VarRef x = elu ? of.x.ref() : q.ref(), z = elu ? of.z.ref() : k.ref();
  const std::initializer_list<VarRef> inputs = {x, z, v.ref(), n.ref(), offset.ref()};
  const Var result = q.tape().record(Op::norm_attention, y, inputs, [=](Backward& b) {
    Tensor dx = b.destination(x), dz = b.destination(z), dv = b.destination(v.ref()),
           dn = b.destination(n.ref()), doffset = b.destination(offset.ref());
    const auto run = elu ? kernels::norm_attention_elu_backward : kernels::norm_attention_backward;
    run(b.ctx(), q.value(), k.value(), v.value(), f, n.value(), offset.value(), scale, log_eta, b.dy(), dx,
        dz, dv, dn, doffset, kept);
    b.commit(x, dx), b.commit(z, dz), b.commit(v.ref(), dv);
    b.commit(n.ref(), dn), b.commit(offset.ref(), doffset);
  });
  return {result, log_eta};
}

}  // namespace eigentrace
