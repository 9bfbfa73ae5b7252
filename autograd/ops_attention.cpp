#include "autograd/ops_attention.h"

#include "tensor/error.h"
#include "tensor/kernels.h"

namespace eigentrace {

Attended softmax_attention(const Var& q, const Var& k, const Var& v, double scale, double dropout) {
  if (q.rank() != 4 || v.rank() != 4)
    fail("softmax_attention: q [B, T, H, N] and v [B, T, H, P] expected, found " + to_string(q.value()) +
         ", " + to_string(v.value()));
  Tape& tape = q.tape();
  Context& ctx = tape.ctx();
  const uint32_t op = dropout > 0 ? tape.next_random_op() : 0;
  Tensor y = ctx.empty(v.shape(), v.dtype()), lse = ctx.empty(q.shape().without(3), q.dtype());
  kernels::softmax_attention(ctx, q.value(), k.value(), v.value(), scale, dropout, op, y, lse);
  const Var result = tape.record(Op::softmax_attention, y, {q, k, v}, [=](Backward& b) {
    Tensor dq = b.destination(q.ref()), dk = b.destination(k.ref()), dv = b.destination(v.ref());
    kernels::softmax_attention_backward(b.ctx(), q.value(), k.value(), v.value(), y, lse, b.dy(), scale,
                                        dropout, op, dq, dk, dv);
    b.commit(q.ref(), dq), b.commit(k.ref(), dk), b.commit(v.ref(), dv);
  });
  return {result, lse};
}

Var ssd(const Var& q, const Var& k, const Var& v, const Var& log_a, const Var& w) {
  Context& ctx = q.ctx();
  Tensor y = ctx.empty(v.shape(), v.dtype());
  kernels::ssd(ctx, q.value(), k.value(), v.value(), log_a.value(), w.value(), y);
  return q.tape().record(Op::ssd, y, {q, k, v, log_a, w}, [=](Backward& b) {
    Tensor dq = b.destination(q.ref()), dk = b.destination(k.ref()), dv = b.destination(v.ref()),
           dlog_a = b.destination(log_a.ref()), dw = b.destination(w.ref());
    kernels::ssd_backward(b.ctx(), q.value(), k.value(), v.value(), log_a.value(), w.value(), b.dy(), dq, dk,
                          dv, dlog_a, dw);
    b.commit(q.ref(), dq), b.commit(k.ref(), dk), b.commit(v.ref(), dv);
    b.commit(log_a.ref(), dlog_a), b.commit(w.ref(), dw);
  });
}

}  // namespace eigentrace
