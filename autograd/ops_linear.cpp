#include "autograd/ops_linear.h"

#include "tensor/error.h"
#include "tensor/kernels.h"

namespace eigentrace {

Var linear(const Var& x, const Var& weight, const Var& bias) {
  if (x.rank() < 1 || weight.rank() != 2)
    fail("linear: x [..., in] and weight [out, in] expected, found " + to_string(x.value()) + ", " +
         to_string(weight.value()));
  Shape shape = x.shape();
  shape[-1] = weight.dim(0);
  Tensor y = kernels::empty_rows(x.ctx(), shape, x.dtype());
  kernels::linear(x.ctx(), x.value(), weight.value(), bias.value(), y);
  return x.tape().record(Op::linear, y, {x, weight, bias}, [x, weight, bias = bias.ref()](Backward& b) {
    b.gradient(x, [&](Tensor& dx) { kernels::linear_backward_input(b.ctx(), b.dy(), weight.value(), dx); });
    Tensor dw = b.destination(weight.ref()), db = b.destination(bias);
    if (dw.defined())
      kernels::linear_backward_weight(b.ctx(), b.dy(), x.value(), dw, db);
    else if (db.defined())
      kernels::linear_backward_bias(b.ctx(), b.dy(), db);
    b.commit(weight.ref(), dw), b.commit(bias, db);
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
