// LayerNorm over the last axis, rows; x̂ = (x − mean) r, r = 1/√(var + ε), biased variance; y = x̂ w + b.
//   with g = dy w:  dx = r (g − mean(g) − x̂ mean(g x̂)),  dw = Σ_rows dy x̂,  db = Σ_rows dy
// RMSNorm is the same with mean ≡ 0 (and no mean(g) in dx), var = mean(x²), no bias.
// The CUDA bodies are in layer_norm_cuda.cuh.
// Residual form: x = a + dropout(branch) first, without a if that is undefined; da = dx + dsum,
// dbranch = mask da / (1 − p), which may take da's place.
#include <algorithm>
#include <cmath>

#include "tensor/dispatch.h"
#include "tensor/dropout_stream.h"
#include "tensor/kernels.h"
#include "tensor/kernels/glu_norm.h"
#include "tensor/kernels/layer_norm_cuda.cuh"
#include "tensor/kernels/norm_add.h"

namespace eigentrace::kernels {
namespace {

template <class T>
void forward_row_cpu(const NormForwardRows<T>& f, int64_t row, T* factors) {
  const int64_t n = f.y.cols;
  const T* x = f.x.data ? f.x.data + row * f.x.stride : nullptr;
  T* y = f.y.data + row * f.y.stride;
  if (f.branch.data) {
    const T* branch = f.branch.data + row * f.branch.stride;
    T* sum = f.sum.data + row * f.sum.stride;
    if (!x) {
      const T* m = dropout_factors(f.mask, row * n, n, factors);
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) sum[i] = branch[i] * m[i];
    } else if (f.mask.threshold) {
      const T* m = dropout_factors(f.mask, row * n, n, factors);
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) sum[i] = x[i] + branch[i] * m[i];
    } else {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) sum[i] = x[i] + branch[i];
    }
    x = sum;
  }
  T mean = 0, squares = 0;
  if (f.centred) {
#pragma omp simd reduction(+ : mean)
    for (int64_t i = 0; i < n; ++i) mean += x[i];
    mean /= static_cast<T>(n);
  }
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
  const T rstd = T(1) / std::sqrt(squares / static_cast<T>(n) + f.epsilon);
  if (f.centred) f.mean[row] = mean;
  f.rstd[row] = rstd;
  const T* bias = f.bias;
  if (bias) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = (x[i] - mean) * rstd * f.weight[i] + bias[i];
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = (x[i] - mean) * rstd * f.weight[i];
  }
}

template <class T>
void backward_row_cpu(const NormBackwardRows<T>& f, int64_t row, T* dw, T* db, T* factors) {
  const int64_t n = f.dy.cols;
  const T* x = f.x.data + row * f.x.stride;
  const T* dy = f.dy.data + row * f.dy.stride;
  const T mean = f.centred ? f.mean[row] : T(0), rstd = f.rstd[row];
  if (dw) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      dw[i] += dy[i] * ((x[i] - mean) * rstd);
      db[i] += dy[i];
    }
  }
  if (!f.dx.data) return;
  T sum_g = 0, sum_gx = 0;
#pragma omp simd reduction(+ : sum_g, sum_gx)
  for (int64_t i = 0; i < n; ++i) {
    const T g = dy[i] * f.weight[i];
    sum_g += g;
    sum_gx += g * ((x[i] - mean) * rstd);
  }
  sum_g = f.centred ? sum_g / static_cast<T>(n) : T(0);
  sum_gx /= static_cast<T>(n);
  T* dx = f.dx.data + row * f.dx.stride;
  const T* dsum = f.dsum.data ? f.dsum.data + row * f.dsum.stride : nullptr;
  if (dsum) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i)
      dx[i] = dsum[i] + rstd * (dy[i] * f.weight[i] - sum_g - (x[i] - mean) * rstd * sum_gx);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i)
      dx[i] = rstd * (dy[i] * f.weight[i] - sum_g - (x[i] - mean) * rstd * sum_gx);
  }
  if (f.dbranch.data) {
    T* dbranch = f.dbranch.data + row * f.dbranch.stride;
    const T* m = dropout_factors(f.mask, row * n, n, factors);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) dbranch[i] = dx[i] * m[i];
  }
}

template <class S>
void run_forward(Context& ctx, const NormForwardRows<S>& f) {
  if (f.y.rows == 0) return;
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda()) {
    norm_forward_cuda(ctx, f);
    return;
  }
#endif
  require_cpu(ctx, "layer_norm");
  constexpr int64_t group = 16;
  if constexpr (!std::is_same_v<S, BFloat16>)
    parallel_rows((f.y.rows + group - 1) / group, [&](int64_t item) {
      std::vector<S> factors(f.mask.threshold ? static_cast<size_t>(f.y.cols) + 16 : 0);
      for (int64_t row = item * group; row < std::min(f.y.rows, (item + 1) * group); ++row)
        forward_row_cpu(f, row, factors.data());
    });
}

template <class T>
void run_backward(Context& ctx, const NormBackwardRows<T>& f, int64_t blocks) {
  require_cpu(ctx, "layer_norm_backward");
  parallel_rows(blocks, [&](int64_t block) {
    std::vector<T> factors(f.dbranch.data ? static_cast<size_t>(f.dy.cols) + 16 : 0);
    T* dw = f.partial_weight ? f.partial_weight + block * f.dy.cols : nullptr;
    T* db = f.partial_bias ? f.partial_bias + block * f.dy.cols : nullptr;
    if (dw) std::fill(dw, dw + f.dy.cols, T(0)), std::fill(db, db + f.dy.cols, T(0));
    const int64_t begin = block * f.rows_per_block, end = std::min(begin + f.rows_per_block, f.dy.rows);
    for (int64_t row = begin; row < end; ++row) backward_row_cpu(f, row, dw, db, factors.data());
  });
}

void check_parameter(const char* kernel, const Tensor& parameter, const Tensor& x) {
  if (parameter.defined() && !(parameter.shape() == Shape{x.dim(-1)} && parameter.contiguous()))
    fail(std::string(kernel) + ": a parameter of shape [" + std::to_string(x.dim(-1)) + "] expected, found " +
         to_string(parameter));
}

template <class T>
Rows<T> optional_rows(const Tensor& x, const char* what) {
  return x.defined() ? rows_of<T>(x, what) : Rows<T>{nullptr, 0, 0, 0};
}

template <class S>
NormForwardRows<S> forward_rows(const NormForward& n, const DropoutStream& mask) {
  using T = Arithmetic<S>;
  return {optional_rows<S>(n.x, "layer_norm: x"),
          rows_of<S>(n.y, "layer_norm: y"),
          optional_rows<S>(n.branch, "layer_norm: branch"),
          optional_rows<S>(n.sum, "layer_norm: sum"),
          n.weight.data<T>(),
          n.bias.defined() ? n.bias.data<T>() : nullptr,
          n.mean.defined() ? n.mean.data<T>() : nullptr,
          n.rstd.data<T>(),
          static_cast<T>(n.epsilon),
          n.mean.defined(),
          mask};
}

}  // namespace

void layer_norm(Context& ctx, const NormForward& n) {
  const bool residual = n.branch.defined();
  check_parameter("layer_norm", n.weight, n.y);
  check_parameter("layer_norm", n.bias, n.y);
  const auto fits = [&](const Tensor& t) { return !t.defined() || t.shape() == n.y.shape(); };
  if (!fits(n.x) || !fits(n.branch) || !(n.x.defined() || (residual && n.p > 0)))
    fail("layer_norm: operands are " + to_string(n.x) + ", " + to_string(n.branch) + " and " +
         to_string(n.y) + "; equal shapes expected");
  DropoutStream mask = dropout_stream(ctx, n.p, n.random_op);
  if (n.p == 0) mask.threshold = 0;
  dispatch_stored(ctx, "layer_norm", n.y.dtype(),
                  [&]<class S>() { run_forward(ctx, forward_rows<S>(n, mask)); });
}

void glu_layer_norm(Context& ctx, const NormForward& n, const Tensor& both) {
  const int64_t width = n.y.dim(-1);
  Shape doubled = n.y.shape();
  doubled[-1] = 2 * width;
  check_parameter("glu_layer_norm", n.weight, n.y);
  check_parameter("glu_layer_norm", n.bias, n.y);
  if (!n.x.defined() || !(n.x.shape() == n.y.shape()) || !(both.shape() == doubled))
    fail("glu_layer_norm: x of y's shape and glu's operand twice as wide expected, found " + to_string(n.x) +
         ", " + to_string(both) + " and " + to_string(n.y));
  bool done = false;
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda())
    dispatch_stored(ctx, "glu_layer_norm", n.y.dtype(), [&]<class S>() {
      NormForward halves = n;
      halves.branch = both.slice(-1, 0, width);
      NormForwardRows<S> f = forward_rows<S>(halves, {});
      f.gate = rows_of<S>(both.slice(-1, width, width), "glu_layer_norm: both");
      done = norm_forward_gated(ctx, f);
    });
#endif
  if (done) return;
  NormForward plain = n;
  glu(ctx, both, plain.sum);  // its place until x is added
  plain.branch = plain.sum, plain.p = 0;
  layer_norm(ctx, plain);
}

void layer_norm_backward(Context& ctx, const NormBackward& n) {
  layer_norm_backward_add(ctx, n, Tensor(), Tensor());
}

void layer_norm_backward_add(Context& ctx, const NormBackward& n, const Tensor& dweight_sent,
                             const Tensor& dbias_sent) {
  const int64_t width = n.x.dim(-1), rows = width == 0 ? 0 : n.x.numel() / width;
  const bool cuda = ctx.device().is_cuda();  // there a block is a group of warps, here a piece of work
  const int64_t per_block = cuda ? norm_rows_per_block(rows) : std::max<int64_t>(16, (rows + 127) / 128);
  const int64_t blocks = (rows + per_block - 1) / per_block;
  Tensor partial_weight, partial_bias;
  if (n.dweight.defined() || n.dbias.defined()) {
    partial_weight = ctx.empty({cuda ? 2 * blocks : blocks, width}, n.weight.dtype());
    if (!cuda) partial_bias = ctx.empty({blocks, width}, n.weight.dtype());
  }
  DropoutStream mask = dropout_stream(ctx, n.p, n.random_op);
  if (n.p == 0) mask.threshold = 0;
  dispatch_stored(ctx, "layer_norm_backward", n.x.dtype(), [&]<class S>() {
    using T = Arithmetic<S>;
    NormBackwardRows<S> f{rows_of<S>(n.x, "layer_norm_backward: x"),
                          rows_of<S>(n.dy, "layer_norm_backward: dy"),
                          optional_rows<S>(n.dsum, "layer_norm_backward: dsum"),
                          optional_rows<S>(n.dx, "layer_norm_backward: dx"),
                          optional_rows<S>(n.dbranch, "layer_norm_backward: dbranch"),
                          n.weight.data<T>(),
                          n.mean.defined() ? n.mean.data<T>() : nullptr,
                          n.rstd.data<T>(),
                          partial_weight.defined() ? partial_weight.data<T>() : nullptr,
                          partial_bias.defined() ? partial_bias.data<T>() : nullptr,
                          per_block,
                          n.mean.defined(),
                          mask};
#ifdef EIGENTRACE_WITH_CUDA
    if (cuda) {
      const auto data = [](const Tensor& x) { return x.defined() ? x.data<T>() : nullptr; };
      return norm_backward_cuda(ctx, f, blocks,
                                NormSink<T>{data(n.dweight), data(n.dbias), data(dweight_sent),
                                            data(dbias_sent), n.weight.numel()});
    }
#endif
    if constexpr (!std::is_same_v<S, BFloat16>) run_backward(ctx, f, blocks);
  });
  if (cuda) return;
  const auto sum_of = [&](const Tensor& partial, const Tensor& sent, Tensor to) {
    if (!to.defined()) return;
    Tensor own = sent.defined() ? ctx.empty(to.shape(), to.dtype()) : to;
    sum(ctx, partial, 0, own);
    if (sent.defined()) binary(ctx, Binary::add, sent, own, to);
  };
  sum_of(partial_weight, dweight_sent, n.dweight);
  sum_of(partial_bias, dbias_sent, n.dbias);
}

}  // namespace eigentrace::kernels
