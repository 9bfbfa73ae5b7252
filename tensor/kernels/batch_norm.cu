// BatchNorm: each column of x [rows, D] over all rows. x̂ = (x − mean) r, r = 1/√(var + ε), biased variance;
// y = x̂ w + b.
//   training:   dx = w r (dy − Σ dy/R − x̂ Σ(dy x̂)/R)      evaluation (mean, var given): dx = w r dy
//   dw = Σ dy x̂,  db = Σ dy
// Mean and variance are found block by block of rows (each block around its own mean) and merged in order:
// M2 = M2ₐ + M2ᵦ + δ² nₐnᵦ/n, the update of Chan, Golub and LeVeque (1979). The CUDA bodies are in
// batch_norm_cuda.cuh.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "tensor/dispatch.h"
#include "tensor/kernels.h"
#include "tensor/kernels/batch_norm_cuda.cuh"
#include "tensor/kernels/gated_batch_norm.h"

namespace eigentrace::kernels {
namespace {

Blocks blocks_of(const Context& ctx, int64_t rows) {
  const int64_t size = ctx.device().is_cuda() ? batch_norm_rows : std::max<int64_t>(16, (rows + 127) / 128);
  return {size, (rows + size - 1) / size};
}

/// means[k, i], squares[k, i]: mean of block k of column i, and Σ (x − that mean)².
template <class T>
void block_moments_cpu(const Rows<T>& x, T* means, T* squares, const Blocks& blocks) {
  parallel_rows(blocks.count, [&](int64_t k) {
    const int64_t begin = k * blocks.size, end = std::min(begin + blocks.size, x.rows), n = x.cols;
    T *mean = means + k * n, *square = squares + k * n;
    std::fill_n(mean, n, T(0)), std::fill_n(square, n, T(0));
    for (int64_t r = begin; r < end; ++r) {
      const T* row = x.data + r * x.stride;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) mean[i] += row[i];
    }
    for (int64_t i = 0; i < n; ++i) mean[i] /= static_cast<T>(end - begin);
    for (int64_t r = begin; r < end; ++r) {
      const T* row = x.data + r * x.stride;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) square[i] += (row[i] - mean[i]) * (row[i] - mean[i]);
    }
  });
}

template <class T>
struct Merge {  // of a column
  MergedBlocks<T> m;
  ET_HD void operator()(int64_t i) const {
    Moments<T> all = m.block(0, i);
    for (int64_t k = 1; k < m.blocks.count; ++k) all.add(m.block(k, i));
    m.write(i, all);
  }
};

template <class T>
struct ReciprocalDeviation {
  const T* var;
  T* rstd;
  T epsilon;
  ET_HD void operator()(int64_t i) const { rstd[i] = T(1) / sqrt(var[i] + epsilon); }
};

template <class S>
struct Apply {
  Rows<S> x, y;
  const Arithmetic<S>*mean, *rstd, *weight, *bias;
  ET_HD void operator()(int64_t row, int64_t i) const {
    y.data[row * y.stride + i] = (x.data[row * x.stride + i] - mean[i]) * rstd[i] * weight[i] + bias[i];
  }
};

template <class T>
struct BlockSums {  // Σ dy and Σ dy x̂ of each block
  Rows<T> x, dy;
  const T *mean, *rstd;
  T *sum_weight, *sum_bias;
  Blocks blocks;
};

template <class T>
void block_sums_cpu(const BlockSums<T>& s) {
  parallel_rows(s.blocks.count, [&](int64_t k) {
    const int64_t begin = k * s.blocks.size, end = std::min(begin + s.blocks.size, s.x.rows), n = s.x.cols;
    T *dw = s.sum_weight + k * n, *db = s.sum_bias + k * n;
    std::fill_n(dw, n, T(0)), std::fill_n(db, n, T(0));
    for (int64_t r = begin; r < end; ++r) {
      const T *x = s.x.data + r * s.x.stride, *dy = s.dy.data + r * s.dy.stride;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        dw[i] += dy[i] * ((x[i] - s.mean[i]) * s.rstd[i]);
        db[i] += dy[i];
      }
    }
  });
}

/// With a gate before it, on CUDA while training: the launch that makes its result takes the moments too.
void normalise(Context& ctx, const BatchNorm& n, [[maybe_unused]] const Gate* gated) {
  const int64_t width = n.x.dim(-1);
  const Blocks blocks = blocks_of(ctx, width == 0 ? 0 : n.x.numel() / width);
  Tensor means, squares;
  if (n.training) {
    if (blocks.count == 0) fail("batch_norm: x has no rows to take statistics of: " + to_string(n.x));
    means = ctx.empty({blocks.count, width}, n.weight.dtype());
    squares = ctx.empty({blocks.count, width}, n.weight.dtype());
  }
  dispatch_stored(ctx, "batch_norm", n.x.dtype(), [&]<class S>() {
    using T = Arithmetic<S>;
    const Rows<S> x = rows_of<S>(n.x, "batch_norm: x"), y = rows_of<S>(n.y, "batch_norm: y");
    T *mean = n.mean.data<T>(), *rstd = n.rstd.data<T>();
    const bool running = n.running_mean.defined();
    if (n.training) {
      const MergedBlocks<T> merged{means.data<T>(),
                                   squares.data<T>(),
                                   blocks,
                                   x.rows,
                                   width,
                                   mean,
                                   rstd,
                                   running ? n.running_mean.data<T>() : nullptr,
                                   running ? n.running_var.data<T>() : nullptr,
                                   static_cast<T>(n.epsilon),
                                   static_cast<T>(n.momentum)};
#ifdef EIGENTRACE_WITH_CUDA
      if (ctx.device().is_cuda()) {
        if (gated) {
          GatedRows<S> source{GateFunction(gated->f),
                              x,
                              rows_of<S>(gated->a, "gated_batch_norm: a"),
                              rows_of<S>(gated->z, "gated_batch_norm: z"),
                              {},
                              gate_mask(ctx, *gated)};
          if (gated->residual.defined())
            source.residual = rows_of<S>(gated->residual, "gated_batch_norm: residual");
          batch_moments_cuda(ctx, source, merged);
        } else {
          batch_moments_cuda(ctx, StoredRows<S>{x}, merged);
        }
      }
#endif
      if (!ctx.device().is_cuda()) {
        if constexpr (std::is_same_v<S, T>) block_moments_cpu(x, means.data<T>(), squares.data<T>(), blocks);
        for_each_index(ctx, width, Merge<T>{merged});
      }
    } else {
      mean = n.running_mean.data<T>();
      for_each_index(ctx, width,
                     ReciprocalDeviation<T>{n.running_var.data<T>(), rstd, static_cast<T>(n.epsilon)});
    }
#ifdef EIGENTRACE_WITH_CUDA
    if (ctx.device().is_cuda())
      return batch_apply_cuda(ctx, BatchApply<S>{x, y, mean, rstd, n.weight.data<T>(), n.bias.data<T>()});
#endif
    for_each_in_rows(ctx, x.rows, width, Apply<S>{x, y, mean, rstd, n.weight.data<T>(), n.bias.data<T>()});
  });
}

}  // namespace

void batch_norm(Context& ctx, const BatchNorm& n) { normalise(ctx, n, nullptr); }

void gated_batch_norm(Context& ctx, const Gate& g, const BatchNorm& n) {
  if (ctx.device().is_cuda() && n.training) return normalise(ctx, n, &g);
  Tensor x = n.x;
  gate(ctx, g, x);
  normalise(ctx, n, nullptr);
}

void batch_norm_backward(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& mean,
                         const Tensor& rstd, bool training, const Tensor& dy, Tensor& dx, Tensor& dweight,
                         Tensor& dbias, const Tensor& dsum) {
  const int64_t width = x.dim(-1);
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda())
    return batch_norm_backward_cuda(ctx, {x, weight, mean, rstd, training, dy, dx, dweight, dbias, dsum},
                                    [](const auto& run, auto) { run(NoGate{}); });
#endif
  const Blocks blocks = blocks_of(ctx, width == 0 ? 0 : x.numel() / width);
  const Tensor sum_weight = ctx.empty({blocks.count, width}, x.dtype());
  const Tensor sum_bias = ctx.empty({blocks.count, width}, x.dtype());
  dispatch_floating(ctx, "batch_norm_backward", x.dtype(), [&]<class T>() {
    const BlockSums<T> sums{rows_of<T>(x, "batch_norm_backward: x"),
                            rows_of<T>(dy, "batch_norm_backward: dy"),
                            mean.data<T>(),
                            rstd.data<T>(),
                            sum_weight.data<T>(),
                            sum_bias.data<T>(),
                            blocks};
    require_cpu(ctx, "batch_norm_backward");
    block_sums_cpu(sums);
  });
  sum(ctx, sum_weight, 0, dweight);
  sum(ctx, sum_bias, 0, dbias);
  if (!dx.defined()) return;
  dispatch_floating(ctx, "batch_norm_backward", x.dtype(), [&]<class T>() {
    const Rows<T> rows = rows_of<T>(x, "batch_norm_backward: x");
    for_each_in_rows(
        ctx, rows.rows, width,
        BatchNormBackwardX<T>{
            rows, rows_of<T>(dy, "batch_norm_backward: dy"), rows_of<T>(dx, "batch_norm_backward: dx"),
            mean.data<T>(), rstd.data<T>(), weight.data<T>(), training ? dweight.data<T>() : nullptr,
            training ? dbias.data<T>() : nullptr,
            dsum.defined() ? rows_of<T>(dsum, "batch_norm_backward: dsum") : Rows<T>{nullptr, 0, 0, 0}});
  });
}

void gated_batch_norm_backward(Context& ctx, const Gate& g, const BatchNorm& n, const Tensor& dy, Tensor& dx,
                               Tensor& da, Tensor& dz, Tensor& dweight, Tensor& dbias) {
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda()) {
    const Tensor none;
    return batch_norm_backward_cuda(ctx,
                                    {n.x, n.weight, n.mean, n.rstd, n.training, dy, dx, dweight, dbias, none},
                                    [&]<class S>(const auto& run, std::type_identity<S>) {
                                      GateGradients<S> then{GateFunction(g.f),
                                                            rows_of<S>(g.a, "gated_batch_norm_backward: a"),
                                                            rows_of<S>(g.z, "gated_batch_norm_backward: z"),
                                                            {},
                                                            {},
                                                            gate_mask(ctx, g)};
                                      if (da.defined())
                                        then.da = rows_of<S>(da, "gated_batch_norm_backward: da");
                                      if (dz.defined())
                                        then.dz = rows_of<S>(dz, "gated_batch_norm_backward: dz");
                                      run(then);
                                    });
  }
#endif
  batch_norm_backward(ctx, n.x, n.weight, n.mean, n.rstd, n.training, dy, dx, dweight, dbias);
  gate_backward(ctx, g, dx, da, dz);
}

}  // namespace eigentrace::kernels
