#include "autograd/ops_pointwise.h"

namespace eigentrace {

Var unary(Unary f, const Var& x) {
  Tensor y = x.ctx().empty_like(x.value());
  kernels::unary(x.ctx(), f, x.value(), y);
  return x.tape().record(Op::unary, y, {x}, [f, x](Backward& b) {
    b.gradient(x, [&](Tensor& dx) { kernels::unary_backward(b.ctx(), f, x.value(), b.dy(), dx); });
  });
}

}  // namespace eigentrace
