// cross_entropy of z = x Wᵀ + b at the labelled rows, by blocks of rows; the logits of one block exist at a
// time. For each block, in order:
//   z = x_block Wᵀ + b;  loss and argmax;  dz = w (softmax(z) − onehot) / count, in place of z but
//   for a factor of the row;
//   dx_block = dz W;  dW += dzᵀ x_block;  db += Σ_rows dz
// These are the gradients for dloss = 1. The loss is the last op of a step, so computing them here means that
// no logit is computed twice; the backward pass only scales them.
#include "tensor/blas.h"
#include "tensor/elements.h"
#include "tensor/kernels.h"
#include "tensor/kernels/vocabulary_head_cuda.cuh"
#include "tensor/labelled_rows.h"
#include "tensor/row_softmax.h"

namespace eigentrace::kernels {
namespace {

constexpr int64_t block_bytes = int64_t{16} << 20;

/// Rows of a block: 16 MB of logits, but at least 64 rows, below which products are slow.
int64_t block_rows(int64_t labels, int64_t vocabulary, DType dtype) {
  const int64_t fitting =
      block_bytes / std::max<int64_t>(vocabulary * static_cast<int64_t>(size_of(dtype)), 1);
  return std::clamp<int64_t>(std::max<int64_t>(fitting / 64 * 64, 64), 1, std::max<int64_t>(labels, 1));
}

template <class T>
struct Head {
  Rows<T> x;
  Matrix<const T> weight;
  const T* bias;
  LabelView labelled;
  int32_t* argmax;
  double* losses;
  T *gathered, *logits, *factors;  // of one block
  bool wants_gradient;
  int64_t D, V;

  /// Loss and argmax of label m, whose logits are z; if gradients are wanted, z becomes dz / factor and the
  /// row of x is scaled by that factor, w / (count Σ exp(z − max)): cheaper than scaling the V logits.
  void finish_row(int64_t m, T* z, T* x_row, T* factor) const {
    argmax[m] = -1, losses[m] = 0, *factor = 0;
    if (!labelled.used(m)) return;  // x_row is zero
    const int64_t label = labelled.labels[m], best = row_argmax(z, V);
    const T largest = z[best], at_label = z[label];
    argmax[m] = static_cast<int32_t>(best);
    const T sum = wants_gradient ? row_exp(z, z, V, largest) : row_exp_sum(z, V, largest);
    losses[m] = static_cast<double>(largest - at_label) + std::log(static_cast<double>(sum));
    if (!wants_gradient) return;
    z[label] -= sum;
    *factor = static_cast<T>(labelled.weights[m] * labelled.per_count / static_cast<double>(sum));
    for (int64_t j = 0; j < D; ++j) x_row[j] *= *factor;
  }

  void gather(int64_t m, T* row) const {
    const T* source = labelled.used(m) ? x.data + labelled.row(m) * x.stride : nullptr;
    for (int64_t j = 0; j < D; ++j) row[j] = source ? source[j] : T(0);
  }

  /// Labels first … first + rows: logits, losses and, if wanted, dz in place of the logits.
  void block_logits(int64_t first, int64_t rows) const {
    parallel_rows(rows, [&](int64_t r) {
      gather(first + r, gathered + r * D);
      if (bias)
        for (int64_t j = 0; j < V; ++j) logits[r * V + j] = bias[j];
    });
    parallel_gemm<T>(rows, V, D, 1, Matrix<const T>{gathered, D}, weight.t(), bias ? T(1) : T(0),
                     Matrix<T>{logits, V});
    parallel_rows(rows,
                  [&](int64_t r) { finish_row(first + r, logits + r * V, gathered + r * D, factors + r); });
  }
};

template <class T>
void head_cpu(const Tensor& x, const Tensor& weight, const Tensor& bias, const LabelledRows& labelled,
              LossResults results, Tensor& losses, Tensor& gathered, Tensor& logits, Tensor& factors,
              Tensor& dx, Tensor& dweight, Tensor& dbias) {
  Head<T> head{.x = rows_of<T>(x, "vocabulary_head: x"),
               .weight = matrix_of<T>(weight, "vocabulary_head: weight"),
               .bias = bias.defined() ? bias.data<T>() : nullptr,
               .labelled = {},
               .argmax = results.argmax.data<int32_t>(),
               .losses = losses.data<double>(),
               .gathered = gathered.data<T>(),
               .logits = logits.data<T>(),
               .factors = factors.data<T>(),
               .wants_gradient = dx.defined() || dweight.defined() || dbias.defined(),
               .D = weight.dim(1),
               .V = weight.dim(0)};
  head.labelled = view_labelled("vocabulary_head", labelled, head.x.rows, head.V);
  const int64_t D = head.D, V = head.V, M = head.labelled.size, step = logits.dim(0);
  const Matrix<const T> dz{head.logits, V}, rows_x{head.gathered, D};
  if (dbias.defined())
    for (int64_t j = 0; j < V; ++j) dbias.data<T>()[j] = 0;
  for (int64_t first = 0; first < M; first += step) {
    const int64_t rows = std::min(step, M - first);
    head.block_logits(first, rows);
    if (dx.defined()) {
      T* to = dx.data<T>() + first * D;
      parallel_gemm<T>(rows, D, V, 1, dz, head.weight, 0, Matrix<T>{to, D});
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t j = 0; j < D; ++j) to[r * D + j] *= head.factors[r];
    }
    if (dweight.defined())
      parallel_gemm<T>(V, D, rows, 1, dz.t(), rows_x, first == 0 ? T(0) : T(1),
                       matrix_of<T>(dweight, "vocabulary_head: dweight"));
    if (dbias.defined()) {
      T* sum = dbias.data<T>();
      for (int64_t r = 0; r < rows; ++r)
#pragma omp simd
        for (int64_t j = 0; j < V; ++j) sum[j] += head.factors[r] * head.logits[r * V + j];
    }
  }
  if (M == 0 && dweight.defined())
    for (int64_t j = 0; j < V * D; ++j) dweight.data<T>()[j] = 0;
  sum_losses<T>(head.labelled, head.losses, results);
}

struct ScaleBy {
  template <class T>
  ET_HD T operator()(T c, T x) const {
    return c * x;
  }
};

}  // namespace

void vocabulary_head(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias,
                     const LabelledRows& labelled, LossResults results, Tensor& dx_labelled, Tensor& dweight,
                     Tensor& dbias) {
  check_labelled("vocabulary_head", labelled);
  if (weight.rank() != 2 || x.rank() < 1 || x.dim(-1) != weight.dim(1) || x.dtype() != weight.dtype())
    fail("vocabulary_head: x [..., D] and weight [V, D] of one type expected, found " + to_string(x) + ", " +
         to_string(weight));
  if (bias.defined() &&
      !(bias.shape() == Shape{weight.dim(0)} && bias.contiguous() && bias.dtype() == x.dtype()))
    fail("vocabulary_head: bias [V] expected for weight " + to_string(weight) + ", found " + to_string(bias));
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda())
    return head_cuda(ctx, x, weight, bias, labelled, results, dx_labelled, dweight, dbias);
#endif
  const int64_t M = labelled.labels.numel(), rows = block_rows(M, weight.dim(0), x.dtype());
  Tensor losses = ctx.empty({M}, DType::f64);
  Tensor gathered = ctx.empty({rows, weight.dim(1)}, x.dtype());
  Tensor logits = ctx.empty({rows, weight.dim(0)}, x.dtype()), factors = ctx.empty({rows}, x.dtype());
  dispatch_floating(ctx, "vocabulary_head", x.dtype(), [&]<class T>() {
    require_cpu(ctx, "vocabulary_head");
    head_cpu<T>(x, weight, bias, labelled, results, losses, gathered, logits, factors, dx_labelled, dweight,
                dbias);
  });
}

void scale_by(Context& ctx, const Tensor& c, const Tensor& x, Tensor& y) {
  if (!(x.shape() == y.shape()) || c.numel() != 1 || x.dtype() != y.dtype() || c.dtype() != x.dtype())
    fail("scale_by: c of one element and equal shapes expected, found " + to_string(c) + ", " + to_string(x) +
         ", " + to_string(y));
  dispatch_floating(ctx, "scale_by", x.dtype(), [&]<class T>() {
    map_elements<T>(ctx, ScaleBy{}, std::array{c.reshape(Shape{}).expand(x.shape()), x}, y);
  });
}

}  // namespace eigentrace::kernels
