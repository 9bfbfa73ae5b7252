#include "autograd/ops_norm.h"

#include <fmt/format.h>

#include "tensor/error.h"
#include "tensor/kernels.h"
#include "tensor/kernels/gated_batch_norm.h"
#include "tensor/kernels/glu_norm.h"
#include "tensor/kernels/norm_add.h"

namespace eigentrace {
namespace {

void check(const char* op, const Var& x, const Var& parameter, const char* what) {
  if (x.rank() == 0 || !(parameter.shape() == Shape{x.dim(-1)}) ||
      parameter.dtype() != arithmetic_type(x.dtype()))
    fail(fmt::format("{}: {}: {}[{}] expected for x {}, found {}", op, what,
                     name_of(arithmetic_type(x.dtype())), x.rank() == 0 ? 0 : x.dim(-1), to_string(x.value()),
                     to_string(parameter.value())));
}

Shape rows_shape(const Var& x) { return {x.dim(-1) == 0 ? 0 : x.value().numel() / x.dim(-1)}; }

/// The parts that every backward pass here shares: parameters' gradients are asked for and handed in around
/// `run`, whose argument calls the kernel. A parameter may have been used before.
template <class Run>
void with_parameters(Backward& b, kernels::NormBackward& n, const VarRef& weight, const VarRef& bias,
                     Run&& run) {
  Tensor weight_sent, bias_sent;
  n.dweight = b.destination_with_sent(weight, weight_sent);
  n.dbias = b.destination_with_sent(bias, bias_sent);
  run([&] { kernels::layer_norm_backward_add(b.ctx(), n, weight_sent, bias_sent); });
  b.commit_with_sent(weight, n.dweight, weight_sent);
  b.commit_with_sent(bias, n.dbias, bias_sent);
}

/// Memory for what the residual forms make of rows like `like`.
void make_residual_room(const Var& like, const Var& weight, kernels::NormForward& n) {
  Context& ctx = like.ctx();
  n.sum = ctx.empty(like.shape(), like.dtype());
  n.y = ctx.empty(like.shape(), like.dtype());
  n.mean = ctx.empty(rows_shape(like), weight.dtype());
  n.rstd = ctx.empty(rows_shape(like), weight.dtype());
}
/// Operands of their backward pass: gradients of the normed value and, if it went on, of the sum.
kernels::NormBackward residual_backward(Backward& b, const Tensor& sum, const Tensor& weight,
                                        const Tensor& mean, const Tensor& rstd) {
  return {.x = sum,
          .weight = weight,
          .mean = mean,
          .rstd = rstd,
          .dy = b.dy(1),
          .dsum = b.has_dy(0) ? b.dy(0) : Tensor{}};
}

}  // namespace

Var layer_norm(const Var& x, const Var& weight, const Var& bias, double epsilon) {
  check("layer_norm", x, weight, "weight");
  check("layer_norm", x, bias, "bias");
  Context& ctx = x.ctx();
  kernels::NormForward n{.x = x.value(), .weight = weight.value(), .bias = bias.value()};
  n.epsilon = epsilon;
  n.y = ctx.empty(x.shape(), x.dtype());
  n.mean = ctx.empty(rows_shape(x), weight.dtype());
  n.rstd = ctx.empty(rows_shape(x), weight.dtype());
  kernels::layer_norm(ctx, n);
  return x.tape().record(
      Op::layer_norm, n.y, {x, weight, bias},
      [x, weight, bias = bias.ref(), mean = n.mean, rstd = n.rstd](Backward& b) {
        kernels::NormBackward g{
            .x = x.value(), .weight = weight.value(), .mean = mean, .rstd = rstd, .dy = b.dy()};
        with_parameters(b, g, weight.ref(), bias, [&](auto&& norm) {
          g.dx = b.destination_with_sent(x.ref(), g.dsum);
          norm();
          b.commit_with_sent(x.ref(), g.dx, g.dsum);
        });
      });
}

Var rms_norm(const Var& x, const Var& weight, double epsilon) {
  check("rms_norm", x, weight, "weight");
  Context& ctx = x.ctx();
  kernels::NormForward n{.x = x.value(), .weight = weight.value()};
  n.epsilon = epsilon;
  n.y = ctx.empty(x.shape(), x.dtype());
  n.rstd = ctx.empty(rows_shape(x), weight.dtype());
  kernels::layer_norm(ctx, n);
  return x.tape().record(Op::rms_norm, n.y, {x, weight}, [x, weight, rstd = n.rstd](Backward& b) {
    kernels::NormBackward g{.x = x.value(), .weight = weight.value(), .rstd = rstd, .dy = b.dy()};
    with_parameters(b, g, weight.ref(), {}, [&](auto&& norm) {
      g.dx = b.destination_with_sent(x.ref(), g.dsum);
      norm();
      b.commit_with_sent(x.ref(), g.dx, g.dsum);
    });
  });
}

ResidualNorm residual_layer_norm(const Var& x, const Var& branch, double dropout, const Var& weight,
                                 const Var& bias, double epsilon) {
  check("residual_layer_norm", branch, weight, "weight");
  check("residual_layer_norm", branch, bias, "bias");
  if (!x.defined() && dropout == 0) fail("residual_layer_norm: x: expected where dropout is 0, found none");
  if (x.defined() && (!(x.shape() == branch.shape()) || x.dtype() != branch.dtype()))
    fail(fmt::format("residual_layer_norm: x {} and branch {} differ", to_string(x.value()),
                     to_string(branch.value())));
  Context& ctx = branch.ctx();
  const uint32_t random_op = dropout > 0 ? branch.tape().next_random_op() : 0;
  kernels::NormForward n{
      .x = x.value(), .branch = branch.value(), .weight = weight.value(), .bias = bias.value()};
  n.epsilon = epsilon, n.p = dropout, n.random_op = random_op;
  make_residual_room(branch, weight, n);
  kernels::layer_norm(ctx, n);
  const VarRef refs[] = {x.ref(), branch.ref(), weight.ref(), bias.ref()};
  const auto backward = [x = x.ref(), branch = branch.ref(), weight, bias = bias.ref(), sum = n.sum,
                         mean = n.mean, rstd = n.rstd, dropout, random_op](Backward& b) {
    if (!b.has_dy(1) && dropout == 0) {  // the sum alone went on
      b.add_gradient(x, b.dy(0));
      return b.add_gradient(branch, b.dy(0));
    }
    kernels::NormBackward g = residual_backward(b, sum, weight.value(), mean, rstd);
    g.p = dropout, g.random_op = random_op;
    with_parameters(b, g, weight.ref(), bias, [&](auto&& norm) {
      const bool shared = dropout == 0;  // both gradients are the same numbers: one tensor, lent to both
      if (!shared) g.dx = b.destination(x), g.dbranch = b.destination(branch);
      if (!g.dx.defined()) g.dx = g.dbranch;  // nobody wants it
      if (!g.dx.defined() && (x.slot >= 0 || branch.slot >= 0))
        g.dx = b.ctx().empty(sum.shape(), sum.dtype());
      norm();
      if (shared) {
        b.add_gradient(x, g.dx);
        b.add_gradient(branch, g.dx);
      } else {
        b.commit(x, g.dx);
        b.commit(branch, g.dbranch);
      }
    });
  };
  std::vector<Var> out = branch.tape().record_many(Op::residual_layer_norm, {n.sum, n.y}, refs, backward);
  return {out[0], out[1]};
}

ResidualNorm residual_layer_norm_of_glu(const Var& x, const Var& both, const Var& weight, const Var& bias,
                                        double epsilon) {
  constexpr const char* what = "residual_layer_norm_of_glu";
  check(what, x, weight, "weight");
  check(what, x, bias, "bias");
  Shape doubled = x.shape();
  doubled[-1] *= 2;
  if (!(both.shape() == doubled) || both.dtype() != x.dtype())
    fail(fmt::format("{}: both: {} expected, found {}", what, to_string(doubled), to_string(both.value())));
  Context& ctx = x.ctx();
  kernels::NormForward n{.x = x.value(), .weight = weight.value(), .bias = bias.value()};
  n.epsilon = epsilon;
  make_residual_room(x, weight, n);
  kernels::glu_layer_norm(ctx, n, both.value());
  const VarRef refs[] = {x.ref(), both.ref(), weight.ref(), bias.ref()};
  const auto backward = [x = x.ref(), both, weight, bias = bias.ref(), sum = n.sum, mean = n.mean,
                         rstd = n.rstd](Backward& b) {
    Tensor dx;
    if (b.has_dy(1)) {
      kernels::NormBackward g = residual_backward(b, sum, weight.value(), mean, rstd);
      with_parameters(b, g, weight.ref(), bias, [&](auto&& norm) {
        if (x.slot >= 0 || both.needs_gradient()) g.dx = b.ctx().empty(sum.shape(), sum.dtype());
        norm();
        dx = g.dx;
      });
    } else {
      dx = b.dy(0);  // the sum alone went on
    }
    if (!dx.defined()) return;
    b.gradient(both, [&](Tensor& d) { kernels::glu_backward(b.ctx(), both.value(), dx, d); });
    b.add_gradient(x, dx);
  };
  const std::vector<Var> out = x.tape().record_many(Op::residual_layer_norm, {n.sum, n.y}, refs, backward);
  return {out[0], out[1]};
}

namespace {

void check_running(const char* op, const RunningStatistics& running, const Var& weight, bool optional) {
  for (const Tensor& x : {running.mean, running.var})
    if (x.defined() ? !(x.shape() == weight.shape()) || x.dtype() != weight.dtype() : !optional)
      fail(fmt::format("{}: running statistics {}[{}] expected, found {}", op, name_of(weight.dtype()),
                       weight.dim(-1), to_string(x)));
}

Var batch_norm_of(kernels::BatchNorm n, const Var& x, const Var& weight, const Var& bias) {
  check("batch_norm", x, weight, "weight");
  check("batch_norm", x, bias, "bias");
  check_running("batch_norm", {n.running_mean, n.running_var}, weight, n.training);
  Context& ctx = x.ctx();
  n.y = ctx.empty(x.shape(), x.dtype());
  if (n.training) n.mean = ctx.empty(weight.shape(), weight.dtype());
  n.rstd = ctx.empty(weight.shape(), weight.dtype());
  if (!n.training) n.mean = n.running_mean;
  kernels::batch_norm(ctx, n);
  return x.tape().record(
      Op::batch_norm, n.y, {x, weight, bias},
      [x, weight, bias = bias.ref(), mean = n.mean, rstd = n.rstd, training = n.training](Backward& b) {
        Tensor sent;
        Tensor dx = b.destination_with_sent(x.ref(), sent), dweight = b.destination(weight.ref()),
               dbias = b.destination(bias);
        if (!dweight.defined()) dweight = b.ctx().empty(weight.shape(), weight.dtype());
        if (!dbias.defined()) dbias = b.ctx().empty(weight.shape(), weight.dtype());
        kernels::batch_norm_backward(b.ctx(), x.value(), weight.value(), mean, rstd, training, b.dy(), dx,
                                     dweight, dbias, sent);
        b.commit_with_sent(x.ref(), dx, sent);
        b.commit(weight.ref(), dweight);
        b.commit(bias, dbias);
      });
}

}  // namespace

Var batch_norm(const Var& x, const Var& weight, const Var& bias, const RunningStatistics& running,
               double momentum, double epsilon) {
  return batch_norm_of({.x = x.value(),
                        .weight = weight.value(),
                        .bias = bias.value(),
                        .running_mean = running.mean,
                        .running_var = running.var,
                        .epsilon = epsilon,
                        .momentum = momentum},
                       x, weight, bias);
}

Var gated_batch_norm(Unary f, const Var& a, const Var& z, const GateOptions& options, const Var& weight,
                     const Var& bias, const RunningStatistics& running, double momentum, double epsilon) {
  const Var& residual = options.residual;
  if (!(a.shape() == z.shape()) || (residual.defined() && !(residual.shape() == a.shape())))
    fail(fmt::format("gated_batch_norm: a {} and z {} (and a residual) of one shape expected",
                     to_string(a.value()), to_string(z.value())));
  check("gated_batch_norm", a, weight, "weight");
  check("gated_batch_norm", a, bias, "bias");
  check_running("gated_batch_norm", running, weight, true);
  Context& ctx = a.ctx();
  kernels::Gate g{.f = f, .a = a.value(), .z = z.value(), .residual = residual.value()};
  if (options.dropout > 0)
    g.drop = {options.dropout, a.tape().next_random_op(), options.mask == DropoutMask::shared_over_time};
  kernels::BatchNorm n{.x = ctx.empty(a.shape(), a.dtype()),
                       .weight = weight.value(),
                       .bias = bias.value(),
                       .running_mean = running.mean,
                       .running_var = running.var,
                       .epsilon = epsilon,
                       .momentum = momentum};
  n.y = ctx.empty(a.shape(), a.dtype());
  n.mean = ctx.empty(weight.shape(), weight.dtype());
  n.rstd = ctx.empty(weight.shape(), weight.dtype());
  kernels::gated_batch_norm(ctx, g, n);
  const Tensor y = n.y;
  n.y = {}, g.residual = {};
  return a.tape().record(
      Op::batch_norm, y, {a, z, residual, weight, bias},
      [g, n, a = a.ref(), z = z.ref(), residual = residual.ref(), weight = weight.ref(),
       bias = bias.ref()](Backward& b) {
        const auto wanted = [&](const VarRef& x, const Tensor& like) {
          const Tensor to = b.destination(x);
          return to.defined() ? to : b.ctx().empty(like.shape(), like.dtype());
        };
        Tensor dx = wanted(residual, n.x), dweight = wanted(weight, n.weight), dbias = wanted(bias, n.bias);
        Tensor da = b.destination(a), dz = b.destination(z);
        kernels::gated_batch_norm_backward(b.ctx(), g, n, b.dy(), dx, da, dz, dweight, dbias);
        b.commit(a, da);
        b.commit(z, dz);
        b.commit(residual, dx);
        b.commit(weight, dweight);
        b.commit(bias, dbias);
      });
}

Var batch_norm_evaluation(const Var& x, const Var& weight, const Var& bias, const RunningStatistics& running,
                          double epsilon) {
  return batch_norm_of({.x = x.value(),
                        .weight = weight.value(),
                        .bias = bias.value(),
                        .running_mean = running.mean,
                        .running_var = running.var,
                        .epsilon = epsilon,
                        .training = false},
                       x, weight, bias);
}

}  // namespace eigentrace
