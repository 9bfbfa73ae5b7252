#include "autograd/ops_linear.h"

#include "tensor/error.h"
#include "tensor/kernels.h"
#include "tensor/kernels/linear_add.h"

namespace eigentrace {
namespace {

/// The weight in x's type, its layout kept.
Tensor weight_beside(const Var& x, const Tensor& weight) {
  if (weight.dtype() == x.dtype() || x.dtype() != DType::bf16) return weight;
  const bool turned = !weight.contiguous() && weight.transpose(0, 1).contiguous();
  const Tensor from = turned ? weight.transpose(0, 1) : weight;
  Tensor w = x.ctx().empty(from.shape(), x.dtype());
  kernels::cast(x.ctx(), from, w);
  return turned ? w.transpose(0, 1) : w;
}

}  // namespace

Var linear(const Var& x, const Var& weight, const Var& bias) {
  if (x.rank() < 1 || weight.rank() != 2)
    fail("linear: x [..., in] and weight [out, in] expected, found " + to_string(x.value()) + ", " +
         to_string(weight.value()));
  Shape shape = x.shape();
  shape[-1] = weight.dim(0);
  Tensor y = kernels::empty_rows(x.ctx(), shape, x.dtype());
  const Tensor w = weight_beside(x, weight.value());
  kernels::linear(x.ctx(), x.value(), w, bias.value(), y);
  return x.tape().record(
      Op::linear, y, {x, weight, bias}, [x, w, weight = weight.ref(), bias = bias.ref()](Backward& b) {
        // The kernel adds what others have sent for x, which saves a pass over three tensors.
        Tensor sent;
        Tensor dx = b.destination_with_sent(x.ref(), sent);
        if (!sent.defined() || collapses_to_rows(sent)) {
          if (dx.defined()) kernels::linear_backward_input_add(b.ctx(), b.dy(), w, sent, dx);
          b.commit_with_sent(x.ref(), dx, sent);
        } else {
          b.gradient(x, [&](Tensor& own) { kernels::linear_backward_input(b.ctx(), b.dy(), w, own); });
        }
        Tensor dw = b.destination(weight), db = b.destination(bias);
        if (dw.defined())
          kernels::linear_backward_weight(b.ctx(), b.dy(), x.value(), dw, db);
        else if (db.defined())
          kernels::linear_backward_bias(b.ctx(), b.dy(), db);
        b.commit(weight, dw), b.commit(bias, db);
      });
}

Var matmul(const Var& a, const Var& b) {
  if (a.rank() < 2 || b.rank() != a.rank())
    fail("matmul: a [..., M, K] and b [..., K, N] expected, found " + to_string(a.value()) + ", " +
         to_string(b.value()));
  Shape shape = a.shape();
  shape[-1] = b.dim(-1);
  Tensor c = a.ctx().empty(shape, a.dtype());
  kernels::matmul(a.ctx(), a.value(), b.value(), c);
  return a.tape().record(Op::matmul, c, {a, b}, [a, b](Backward& back) {
    const int last = a.rank() - 1;
    back.gradient(a, [&](Tensor& da) {
      kernels::matmul(back.ctx(), back.dy(), b.value().transpose(last - 1, last), da);
    });
    back.gradient(b, [&](Tensor& db) {
      kernels::matmul(back.ctx(), a.value().transpose(last - 1, last), back.dy(), db);
    });
  });
}

}  // namespace eigentrace
