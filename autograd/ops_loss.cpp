#include "autograd/ops_loss.h"

#include "tensor/error.h"
#include "tensor/labelled_rows.h"

namespace eigentrace {
namespace {

struct Results {
  Tensor value, correct, loss_sum, argmax;

  Results(Context& ctx, DType dtype, const Labels& labels)
      : value(ctx.empty({}, dtype)),
        correct(ctx.empty({1}, DType::f64)),
        loss_sum(ctx.empty({1}, DType::f64)),
        argmax(ctx.empty(labels.labels.shape(), DType::i32)) {}
  kernels::LossResults places() { return {value, correct, loss_sum, argmax}; }
};

}  // namespace

Var labelled_rows(const Var& x, const Labels& labels) {
  if (x.rank() < 2) fail("labelled_rows: x [B, T, ...] expected, found " + to_string(x.value()));
  const auto as_rows = [](const Tensor& t) {
    const int64_t rows = t.dim(0) * t.dim(1);
    return t.reshape({rows, rows == 0 ? 0 : t.numel() / rows});
  };
  Shape shape = x.shape();
  shape[0] = 1, shape[1] = labels.labels.numel();
  Tensor y = x.ctx().empty(shape, x.dtype()), to = as_rows(y);
  kernels::gather_labelled(x.ctx(), as_rows(x.value()), rows_of_labels(labels), to);
  return x.tape().record(Op::labelled_rows, y, {x.ref()}, [x = x.ref(), labels, as_rows](Backward& b) {
    Context& ctx = b.ctx();
    b.add_rows(x, [&ctx, labels, as_rows, dy = b.dy()](Tensor& dx, bool adds) {
      Tensor rows = as_rows(dx);
      if (adds) return kernels::add_labelled(ctx, as_rows(dy), rows_of_labels(labels), rows);
      kernels::scatter_labelled(ctx, {}, as_rows(dy), rows_of_labels(labels), rows);
    });
  });
}

Loss cross_entropy(const Var& logits, const Labels& labels) {
  if (logits.rank() < 1) fail("cross_entropy: logits [..., V] expected, found " + to_string(logits.value()));
  Context& ctx = logits.ctx();
  Results results(ctx, logits.dtype(), labels);
  Tensor kept = ctx.empty({labels.labels.numel(), 2}, logits.dtype());
  kernels::cross_entropy(ctx, logits.value(), rows_of_labels(labels), results.places(), kept);
  const Var value =
      logits.tape().record(Op::cross_entropy, results.value, {logits}, [logits, labels, kept](Backward& b) {
        b.gradient(logits, [&](Tensor& dlogits) {
          kernels::cross_entropy_backward(b.ctx(), b.dy(), logits.value(), rows_of_labels(labels), kept,
                                          dlogits);
        });
      });
  return {value, results.correct, results.loss_sum, results.argmax};
}

Loss vocabulary_head(const Var& x, const Var& weight, const Var& bias, const Labels& labels) {
  if (x.rank() < 1 || weight.rank() != 2)
    fail("vocabulary_head: x [..., D] and weight [V, D] expected, found " + to_string(x.value()) + ", " +
         to_string(weight.value()));
  Context& ctx = x.ctx();
  Results results(ctx, x.dtype(), labels);
  const auto wanted = [&](const Var& var) { return x.tape().recording() && var.needs_gradient(); };
  Tensor dx_labelled, dweight, dbias;  // gradients for dloss = 1, of those that are wanted
  if (wanted(x)) dx_labelled = ctx.empty({labels.labels.numel(), x.dim(-1)}, x.dtype());
  if (wanted(weight)) dweight = ctx.empty(weight.shape(), x.dtype());
  if (wanted(bias)) dbias = ctx.empty(bias.shape(), x.dtype());
  kernels::vocabulary_head(ctx, x.value(), weight.value(), bias.value(), rows_of_labels(labels),
                           results.places(), dx_labelled, dweight, dbias);
  const Var value = x.tape().record(
      Op::vocabulary_head, results.value, {x.ref(), weight.ref(), bias.ref()},
      [x = x.ref(), weight = weight.ref(), bias = bias.ref(), labels, dx_labelled, dweight,
       dbias](Backward& b) {
        b.gradient(x, [&](Tensor& dx) {
          if (labels.rows.defined())
            return kernels::scatter_labelled(b.ctx(), b.dy(), dx_labelled, rows_of_labels(labels), dx);
          Tensor rows = dx.reshape(dx_labelled.shape());
          kernels::scale_by(b.ctx(), b.dy(), dx_labelled, rows);
        });
        b.gradient(weight, [&](Tensor& dw) { kernels::scale_by(b.ctx(), b.dy(), dweight, dw); });
        b.gradient(bias, [&](Tensor& db) { kernels::scale_by(b.ctx(), b.dy(), dbias, db); });
      });
  return {value, results.correct, results.loss_sum, results.argmax};
}

Var log_softmax(const Var& x) {
  Tensor y = x.ctx().empty(x.shape(), x.dtype());
  kernels::log_softmax(x.ctx(), x.value(), y);
  return x.tape().record(Op::log_softmax, y, {x.ref()}, [x = x.ref(), y](Backward& b) {
    b.gradient(x, [&](Tensor& dx) { kernels::log_softmax_backward(b.ctx(), y, b.dy(), dx); });
  });
}

}  // namespace eigentrace
