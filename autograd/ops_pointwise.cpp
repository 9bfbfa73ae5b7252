#include "autograd/ops_pointwise.h"

#include <fmt/format.h>

#include "tensor/error.h"

namespace eigentrace {

Var cast(const Var& x, DType dtype) {
  if (x.dtype() == dtype) return x;
  Tensor y = x.ctx().empty(x.shape(), dtype);
  kernels::cast(x.ctx(), x.value(), y);
  return x.tape().record(Op::cast, y, {x}, [x = x.ref()](Backward& b) {
    b.gradient(x, [&](Tensor& dx) { kernels::cast(b.ctx(), b.dy(), dx); });
  });
}

Var activations(const Var& x) { return cast(x, x.ctx().activation_type(x.dtype())); }

Var unary(Unary f, const Var& x) {
  Tensor y = x.ctx().empty_like(x.value());
  kernels::unary(x.ctx(), f, x.value(), y);
  return x.tape().record(Op::unary, y, {x}, [f, x](Backward& b) {
    b.gradient(x, [&](Tensor& dx) { kernels::unary_backward(b.ctx(), f, x.value(), b.dy(), dx); });
  });
}

namespace {

/// dx = g summed over the axes along which a tensor of dx's shape was broadcast to g's.
void sum_to(Context& ctx, Tensor g, Tensor& dx) {
  const int lead = g.rank() - dx.rank();
  const auto broadcast_along = [&](int axis) {
    return g.dim(axis) != 1 && (axis < lead || dx.dim(axis - lead) == 1);
  };
  for (int axis = 0; axis < g.rank(); ++axis) {
    if (!broadcast_along(axis)) continue;
    int end = axis + 1;  // neighbouring axes are summed as one
    std::vector<int64_t> shape = g.shape().to_vector();
    while (end < g.rank() && (broadcast_along(end) || g.dim(end) == 1)) ++end;
    int64_t outer = 1, reduced = 1, inner = 1;
    for (int a = 0; a < g.rank(); ++a) (a < axis ? outer : a < end ? reduced : inner) *= g.dim(a);
    for (int a = axis; a < end; ++a) shape[static_cast<size_t>(a)] = 1;
    if (!g.contiguous()) {
      Tensor dense = ctx.empty_like(g);
      kernels::copy(ctx, g, dense);
      g = dense;
    }
    Tensor y = ctx.empty(Shape(shape), g.dtype());
    kernels::sum(ctx, g.reshape({outer, reduced, inner}), 1, y);
    g = y;
  }
  kernels::copy(ctx, g.reshape(dx.shape()), dx);
}

}  // namespace

Var binary(Binary f, const Var& a, const Var& b) {
  if (a.dtype() != b.dtype() && (a.dtype() == DType::bf16 || b.dtype() == DType::bf16))
    return binary(f, widen(a), widen(b));
  if (a.dtype() != b.dtype())
    fail(fmt::format("{}: operands of one type expected, found {} and {}", name_of(f), to_string(a.value()),
                     to_string(b.value())));
  Context& ctx = a.ctx();
  const Shape shape = broadcast(a.shape(), b.shape());
  Tensor y = ctx.empty(shape, a.dtype());
  kernels::binary(ctx, f, a.value().expand(shape), b.value().expand(shape), y);
  if (f == Binary::add || f == Binary::sub) {
    const auto send = [shape](Backward& back, const VarRef& x, bool negative) {
      if (x.slot < 0) return;
      if (x.shape == shape && !negative) return back.add_gradient(x, back.dy());
      back.gradient(x, [&](Tensor& dx) {
        if (x.shape == shape) return kernels::scale(back.ctx(), back.dy(), -1, dx);
        sum_to(back.ctx(), back.dy(), dx);
        if (negative) kernels::scale(back.ctx(), dx, -1, dx);
      });
    };
    return a.tape().record(Op::binary, y, {a, b}, [f, a = a.ref(), b = b.ref(), send](Backward& back) {
      send(back, a, false);
      send(back, b, f == Binary::sub);
    });
  }
  return a.tape().record(Op::binary, y, {a, b}, [f, a, b, shape](Backward& back) {
    const Tensor va = a.value().expand(shape), vb = b.value().expand(shape);
    const auto send = [&](const Var& x, auto&& write) {
      back.gradient(x, [&](Tensor& dx) {
        if (x.shape() == shape) return write(dx);
        Tensor full = back.ctx().empty(shape, dx.dtype());
        write(full);
        sum_to(back.ctx(), full, dx);
      });
    };
    send(a, [&](Tensor& da) { kernels::binary(back.ctx(), f, back.dy(), vb, da); });  // × and ÷ alike
    send(b, [&](Tensor& db) {
      if (f == Binary::mul)
        kernels::binary(back.ctx(), f, back.dy(), va, db);
      else
        kernels::div_backward_b(back.ctx(), back.dy(), va, vb, db);
    });
  });
}

Var scale(const Var& x, double factor) {
  Tensor y = x.ctx().empty_like(x.value());
  kernels::scale(x.ctx(), x.value(), factor, y);
  return x.tape().record(Op::scale, y, {x}, [factor, x = x.ref()](Backward& b) {
    b.gradient(x, [&](Tensor& dx) { kernels::scale(b.ctx(), b.dy(), factor, dx); });
  });
}

Var dropout(const Var& x, double p, DropoutMask mask) {
  if (p == 0) return x;
  const bool shared = mask == DropoutMask::shared_over_time;
  const uint32_t op = x.tape().next_random_op();
  Tensor y = x.ctx().empty_like(x.value());
  kernels::dropout(x.ctx(), x.value(), p, op, shared, y);
  return x.tape().record(Op::dropout, y, {x}, [p, op, shared, x = x.ref()](Backward& b) {
    b.gradient(x, [&](Tensor& dx) { kernels::dropout(b.ctx(), b.dy(), p, op, shared, dx); });
  });
}

Var glu(const Var& x) {
  if (x.rank() == 0 || x.dim(-1) % 2 != 0)
    fail(fmt::format("glu: an even last axis expected, found {}", to_string(x.value())));
  Shape shape = x.shape();
  shape[-1] /= 2;
  Tensor y = x.ctx().empty(shape, x.dtype());
  kernels::glu(x.ctx(), x.value(), y);
  return x.tape().record(Op::glu, y, {x}, [x](Backward& b) {
    b.gradient(x, [&](Tensor& dx) { kernels::glu_backward(b.ctx(), x.value(), b.dy(), dx); });
  });
}

namespace {

kernels::Dropout drawn(const Var& x, double p, DropoutMask mask) {
  if (p == 0) return {};
  return {p, x.tape().next_random_op(), mask == DropoutMask::shared_over_time};
}

}  // namespace

Var activation(Unary f, const Var& x, double p, DropoutMask mask) {
  if (p == 0) return unary(f, x);
  const kernels::Dropout drop = drawn(x, p, mask);
  Tensor y = x.ctx().empty_like(x.value());
  kernels::activation(x.ctx(), f, x.value(), drop, y);
  return x.tape().record(Op::activation, y, {x}, [f, drop, x](Backward& b) {
    b.gradient(x, [&](Tensor& dx) { kernels::activation_backward(b.ctx(), f, x.value(), drop, b.dy(), dx); });
  });
}

Var gate(Unary f, const Var& a, const Var& z, const GateOptions& options) {
  const Var& residual = options.residual;
  if (!(a.shape() == z.shape()) || (residual.defined() && !(residual.shape() == a.shape())))
    fail(fmt::format("gate: a {} and z {} (and a residual) of one shape expected", to_string(a.value()),
                     to_string(z.value())));
  const kernels::Dropout drop = drawn(a, options.dropout, options.mask);
  Tensor y = a.ctx().empty(a.shape(), a.dtype());
  kernels::gate(a.ctx(), {f, a.value(), z.value(), residual.value(), drop}, y);
  return a.tape().record(
      Op::gate, y, {a, z, residual}, [f, a, z, residual = residual.ref(), drop](Backward& b) {
        b.add_gradient(residual, b.dy());
        Tensor da = b.destination(a.ref()), dz = b.destination(z.ref());
        kernels::gate_backward(b.ctx(), {f, a.value(), z.value(), {}, drop}, b.dy(), da, dz);
        b.commit(a.ref(), da);
        b.commit(z.ref(), dz);
      });
}

Var sum(const Var& x, int axis, bool keep) {
  const int at = axis < 0 ? axis + x.rank() : axis;
  if (at < 0 || at >= x.rank())
    fail(fmt::format("sum: axis {} of {} does not exist", axis, to_string(x.value())));
  Shape kept = x.shape();
  kept[at] = 1;
  Tensor y = x.ctx().empty(keep ? kept : x.shape().without(at), x.dtype());
  kernels::sum(x.ctx(), x.value(), at, y);
  return x.tape().record(Op::sum, y, {x}, [kept, x = x.ref()](Backward& b) {
    b.gradient(x, [&](Tensor& dx) { kernels::copy(b.ctx(), b.dy().reshape(kept).expand(dx.shape()), dx); });
  });
}

}  // namespace eigentrace
