#include "autograd/ops_sequence.h"

#include <fmt/format.h>

#include <numeric>

#include "autograd/ops_shape.h"
#include "tensor/error.h"

namespace eigentrace {

Var embedding(const Var& table, const Tokens& tokens, const Var& positions, const Var& bias) {
  const Shape shape = tokens.ids.shape().with(table.dim(-1));
  const int64_t time = tokens.ids.dim(-1), width = table.dim(-1);
  if (table.rank() != 2 || tokens.ids.rank() != 2)
    fail(fmt::format("embedding: table [V, D] and ids [B, T] expected, found {} and {}",
                     to_string(table.value()), to_string(tokens.ids)));
  if (positions.defined() && (positions.rank() != 2 || positions.dim(0) < time || positions.dim(1) != width))
    fail(fmt::format("embedding: positions [≥{}, {}] expected, found {}; raise max_pos_embed", time, width,
                     to_string(positions.value())));
  if (bias.defined() && !(bias.shape() == Shape{width}))
    fail(fmt::format("embedding: bias [{}] expected, found {}", width, to_string(bias.value())));
  Context& ctx = table.ctx();
  Tensor y = ctx.empty(shape, ctx.activation_type(table.dtype()));
  kernels::embedding(ctx, tokens.ids, table.value(), positions.value(), bias.value(), y);
  return table.tape().record(Op::embedding, y, {table, positions, bias},
                             [table = table.ref(), positions = positions.ref(), bias = bias.ref(), tokens,
                              time, width](Backward& b) {
                               b.gradient(table, [&](Tensor& dx) {
                                 kernels::embedding_backward(b.ctx(), tokens.ids, tokens.order, b.dy(), dx);
                               });
                               b.gradient(positions, [&](Tensor& dx) {
                                 Tensor used = dx.slice(0, 0, time),
                                        rest = dx.slice(0, time, dx.dim(0) - time);
                                 kernels::sum(b.ctx(), b.dy(), 0, used);
                                 kernels::fill(b.ctx(), rest, 0);
                               });
                               b.gradient(bias, [&](Tensor& dx) {
                                 kernels::sum(b.ctx(), b.dy().reshape({tokens.ids.numel(), width}), 0, dx);
                               });
                             });
}

namespace {

/// `elu`: channels whose values are mapped; the gradient is that of what they are mapped from.
Var convolved(const Var& x, const Var& weight, const Var& bias, bool silu, kernels::ChannelRange elu) {
  Context& ctx = x.ctx();
  Tensor y = ctx.empty(x.shape(), x.dtype());
  kernels::causal_conv1d_elu(ctx, x.value(), weight.value(), bias.value(), silu, elu, y);
  return x.tape().record(Op::causal_conv1d, y, {x, weight, bias}, [x, weight, bias, silu](Backward& b) {
    Tensor dx = b.destination(x.ref()), dweight = b.destination(weight.ref()),
           dbias = b.destination(bias.ref());
    kernels::causal_conv1d_backward(b.ctx(), x.value(), weight.value(), bias.value(), silu, b.dy(), dx,
                                    dweight, dbias);
    b.commit(x.ref(), dx);
    b.commit(weight.ref(), dweight);
    b.commit(bias.ref(), dbias);
  });
}

}  // namespace

Var causal_conv1d(const Var& x, const Var& weight, const Var& bias, bool silu) {
  return convolved(x, weight, bias, silu, {});
}

ConvolvedParts causal_conv1d_elu(const Var& x, const Var& weight, const Var& bias, bool silu,
                                 const std::vector<int64_t>& widths, size_t mapped) {
  if (mapped >= widths.size())
    fail(fmt::format("causal_conv1d_elu: mapped: one of {} parts expected, found {}", widths.size(), mapped));
  const int64_t begin =
      std::accumulate(widths.begin(), widths.begin() + static_cast<int64_t>(mapped), int64_t{0});
  ConvolvedParts out{split(convolved(x, weight, bias, silu, {begin, begin + widths[mapped]}), widths), {}};
  out.of = out.parts[mapped];
  out.parts[mapped] = x.tape().record(
      Op::unary, out.of.value(), {out.of}, [y = out.of.value(), of = out.of.ref()](Backward& b) {
        b.gradient(of, [&](Tensor& dx) { kernels::elu_backward_of(b.ctx(), y, b.dy(), dx); });
      });
  return out;
}

Var pool(const Var& x, Pooling pooling, const Tensor& lengths, const Tensor& valid_time) {
  if (x.rank() != 3) fail(fmt::format("pool: x [B, T, D] expected, found {}", to_string(x.value())));
  Context& ctx = x.ctx();
  const Shape shape = x.shape().without(1);
  Tensor y = ctx.empty(shape, x.dtype()), argmax;
  if (pooling == Pooling::max) argmax = ctx.empty(shape, DType::i32);
  kernels::pool(ctx, pooling, x.value(), lengths, valid_time, y, argmax);
  return x.tape().record(Op::pool, y, {x}, [pooling, lengths, valid_time, argmax, x = x.ref()](Backward& b) {
    b.gradient(x, [&](Tensor& dx) {
      kernels::pool_backward(b.ctx(), pooling, lengths, valid_time, argmax, b.dy(), dx);
    });
  });
}

Var reverse_time(const Var& x) {
  if (x.rank() != 3) fail(fmt::format("reverse_time: x [B, T, D] expected, found {}", to_string(x.value())));
  Tensor y = x.ctx().empty(x.shape(), x.dtype());
  kernels::reverse_time(x.ctx(), x.value(), y);
  return x.tape().record(Op::reverse_time, y, {x}, [x = x.ref()](Backward& b) {
    b.gradient(x, [&](Tensor& dx) { kernels::reverse_time(b.ctx(), b.dy(), dx); });
  });
}

}  // namespace eigentrace
