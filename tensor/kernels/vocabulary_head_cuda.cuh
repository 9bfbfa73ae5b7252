#pragma once
// The vocabulary head on CUDA: equations in vocabulary_head.cu.
//   gather                        x of the labels, once
//   per block of rows             z = x Wᵀ + b (written once);  loss, argmax and dz in place of z (one read,
//   one
//                                 write: a row stays in registers);  dx = dz W;  dW += dzᵀ x;  db += Σ dz
// 4096 labels, V 8192, D 128, float32: z is 134 MB and passes memory five times (written, read and written as
// dz, read by two products): 671 MB, 0.16 ms at 4.2 TB/s; three products of 8.6 GFLOP.
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/cuda_blas.h"
#include "tensor/gemm_outer_wgmma.h"
#include "tensor/kernels/column_sum.cuh"
#include "tensor/kernels/head_blocks.h"
#include "tensor/kernels/labelled_rows.cuh"
#include "tensor/kernels/turn.cuh"
#include "tensor/kernels/vocabulary_head_fused.cuh"
#include "tensor/kernels/vocabulary_head_wgmma.h"

namespace eigentrace::kernels {
namespace {

/// A row of logits, a thread's Held packs of Width elements in registers (Held = 0: read again from memory).
template <class T, int Width, int Held>
struct HeldRow {
  T* data;
  int columns;
  Pack<T, Width> held[Held ? Held : 1];

  __device__ int column(int k) const { return (k * row_threads + static_cast<int>(threadIdx.x)) * Width; }
  __device__ HeldRow(T* row, int n) : data(row), columns(n) {
#pragma unroll
    for (int k = 0; k < Held; ++k)
      if (column(k) < n) held[k] = *reinterpret_cast<const Pack<T, Width>*>(row + column(k));
  }
  /// f(column, value) for this thread's elements; what f makes of the value stays if the row is held.
  template <class F>
  __device__ void each(F&& f) {
    if constexpr (Held > 0) {
#pragma unroll
      for (int k = 0; k < Held; ++k) {
        if (column(k) >= columns) break;
#pragma unroll
        for (int i = 0; i < Width; ++i) f(column(k) + i, held[k].at[i]);
      }
    } else {
      for (int k = 0; column(k) < columns; ++k)
        for (int i = 0; i < Width; ++i) {
          T value = data[column(k) + i];
          f(column(k) + i, value);
        }
    }
  }
  /// Writes g(column, value) over the row.
  template <class G>
  __device__ void store(G&& g) {
    if constexpr (Held > 0) {
      each([&](int j, T& value) { value = g(j, value); });
#pragma unroll
      for (int k = 0; k < Held; ++k)
        if (column(k) < columns) *reinterpret_cast<Pack<T, Width>*>(data + column(k)) = held[k];
    } else {
      each([&](int j, T& value) { data[j] = g(j, value); });
    }
  }
};

/// A block a row: loss and argmax of label first + r, whose logits are row r of z; then dz in place of z.
template <class T, int Width, int Held>
__global__ void __launch_bounds__(row_threads)
    head_rows_kernel(Rows<T> z, DeviceLabels labels, int64_t first, bool wants_gradient, int32_t* argmax,
                     double* losses) {
  // Last rows first: the product that wrote them has left them in the L2 cache, and those after this read
  // first rows first.
  const int64_t r = gridDim.x - 1 - blockIdx.x, m = first + r;
  T* row = z.data + r * z.stride;
  const int n = static_cast<int>(z.cols), me = static_cast<int>(threadIdx.x);
  const bool used = labels.used(m);
  if (!used || !labels.valid(m)) {
    if (me == 0) argmax[m] = -1, losses[m] = used ? NAN : 0;
    for (int j = me; wants_gradient && j < n; j += row_threads) row[j] = 0;
    return;
  }
  const int label = labels.labels[m];
  const T at_label = row[label];
  HeldRow<T, Width, Held> z_row(row, n);
  Largest<T> mine{static_cast<T>(-INFINITY), INT_MAX};
  z_row.each([&](int j, T& value) {
    if (value > mine.value) mine = {value, j};  // j ascends: the first of equals stays
  });
  const Largest<T> best = block_largest(mine);  // its barriers also keep at_label's read before any write
  T sum = 0;
  z_row.each([&](int, T& value) {
    value = fast_exp(value - best.value);
    sum += value;
  });
  sum = block_sum(sum);
  if (me == 0) {
    argmax[m] = best.index;
    losses[m] = static_cast<double>(best.value - at_label) + log(static_cast<double>(sum));
  }
  if (!wants_gradient) return;
  const double weight = labels.weights[m] * labels.per_count();
  const T c = static_cast<T>(weight), factor = static_cast<T>(weight / static_cast<double>(sum));
  z_row.store([&](int j, T value) {
    const T e = Held > 0 ? value : fast_exp(value - best.value);
    return factor * e - (j == label ? c : T(0));
  });
}

template <class T>
void head_rows(Context& ctx, const Rows<T>& z, const DeviceLabels& labels, int64_t first, bool wants_gradient,
               int32_t* argmax, double* losses) {
  constexpr int wide = 16 / sizeof(T);
  const bool aligned = z.cols % wide == 0 && z.stride % wide == 0;
  auto* kernel = head_rows_kernel<T, 1, 0>;
  if (sizeof(T) == 4 && aligned) {  // float64 need not be fast
    const int64_t packs = (z.cols + row_threads * wide - 1) / (row_threads * wide);
    if (packs <= 2)
      kernel = head_rows_kernel<T, wide, 2>;
    else if (packs <= 8)
      kernel = head_rows_kernel<T, wide, 8>;
    else if (packs <= 16)
      kernel = head_rows_kernel<T, wide, 16>;
  }
  launch(ctx, kernel, static_cast<unsigned>(z.rows), row_threads, 0, z, labels, first, wants_gradient, argmax,
         losses);
}

template <class T>
struct AddTo {
  const T* x;
  T* y;
  ET_HD void operator()(int64_t i) const { y[i] += x[i]; }
};

/// True iff dW and db are a sum that cuda_gemm_long may have one kernel for.
inline bool sums_long(const Context& ctx, DType dtype, int64_t V, int64_t D, int64_t rows) {
  return dtype == DType::f32 && ctx.precision == Precision::tf32 && wgmma_fits(D, V, rows);
}

/// Memory of a head: what its blocks are computed in.
struct HeadScratch {
  Tensor losses, gathered, logits, products, column_sums, bias_sums, turned;
};

template <class T>
void head_cuda_body(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias,
                    const LabelledRows& labelled, LossResults results, HeadScratch& scratch, Tensor& dx,
                    Tensor& dweight, Tensor& dbias) {
  const Rows<T> in = rows_of<T>(x, "vocabulary_head: x");
  const Matrix<const T> w = matrix_of<T>(weight, "vocabulary_head: weight");
  const int64_t V = weight.dim(0), D = weight.dim(1), M = labelled.labels.numel();
  const int64_t step = scratch.logits.dim(0), ld = scratch.logits.dim(1);
  const Matrix<const T> w_of_dx = scratch.turned.defined() ? turned<T>(ctx, weight, scratch.turned).t() : w;
  const DeviceLabels labels(labelled, in.rows, V);
  T* logits = scratch.logits.data<T>();
  const Matrix<const T> gathered = gathered_rows(ctx, in, labels, scratch.gathered);
  const bool wants_gradient = dx.defined() || dweight.defined() || dbias.defined();
  for (int64_t first = 0; first < M; first += step) {
    const int64_t rows = std::min(step, M - first);
    const Matrix<const T> x_block = gathered.at(first, 0), dz{logits, ld};
    Product<T> forward{rows, V, D, x_block, w.t(), Matrix<T>{logits, ld}};
    forward.bias = bias.defined() ? bias.data<T>() : nullptr;
    cuda_gemm(ctx, forward);
    head_rows(ctx, Rows<T>{logits, rows, V, ld}, labels, first, wants_gradient,
              results.argmax.data<int32_t>(), scratch.losses.data<double>());
    if (dx.defined())
      cuda_gemm_long<T>(
          ctx,
          Product<T>{rows, D, V, dz, w_of_dx, Matrix<T>{dx.data<T>() + first * D, std::max<int64_t>(D, 1)}},
          nullptr, 0, scratch.products.data<T>());
    Product<T> outer{V, D, rows, dz.t(), x_block, {}};
    if (dweight.defined()) {
      outer.c = matrix_of<T>(dweight, "vocabulary_head: dweight");
      outer.beta = first == 0 ? T(0) : T(1);
    }
    if (dweight.defined() && rows == M && sums_long(ctx, x.dtype(), V, D, M)) {
      cuda_gemm_long<T>(ctx, outer, dbias.defined() ? dbias.data<T>() : nullptr, 1,
                        scratch.products.data<T>());
      continue;
    }
    if (dweight.defined()) cuda_gemm(ctx, outer);
    if (dbias.defined()) {
      T* sums = first == 0 ? dbias.data<T>() : scratch.bias_sums.data<T>();
      column_sum(ctx, Rows<T>{logits, rows, V, ld}, sums, 1, scratch.column_sums.data<T>());
      if (first > 0) for_each_index(ctx, V, AddTo<T>{sums, dbias.data<T>()});
    }
  }
  sum_losses_cuda<T>(ctx, labels, scratch.losses.data<double>(), results);
}

inline void head_cuda(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias,
                      const LabelledRows& labelled, LossResults results, Tensor& dx, Tensor& dweight,
                      Tensor& dbias) {
  if (takes_fused_head(ctx, x, weight, labelled))
    return fused_head(ctx, x, weight, bias, labelled, results, dx, dweight, dbias);
  if (takes_wgmma_head(ctx, x, weight, labelled))
    return wgmma_head(ctx, x, weight, bias, labelled, results, dx, dweight, dbias);
  const int64_t V = weight.dim(0), D = weight.dim(1), M = labelled.labels.numel();
  const int64_t ld = std::max<int64_t>((V + 7) / 8 * 8, 8);  // whole 32 bytes, so that rows stay aligned
  const int64_t fitting = head_block_bytes / (ld * static_cast<int64_t>(size_of(x.dtype())));
  const int64_t rows = std::clamp<int64_t>(fitting / 128 * 128, std::min<int64_t>(M, 128), M);
  const int64_t rest = M % std::max<int64_t>(rows, 1);
  int64_t products = 0;
  if (dx.defined())
    products = std::max(cuda_long_scratch(ctx, x.dtype(), rows, D, V, false),
                        cuda_long_scratch(ctx, x.dtype(), rest, D, V, false));
  if (dweight.defined() && rows == M && sums_long(ctx, x.dtype(), V, D, M))
    products = std::max(products, cuda_long_scratch(ctx, x.dtype(), V, D, M, dbias.defined()));
  const bool turns = dx.defined() && turns_weight(ctx, weight, rows);
  HeadScratch scratch{
      .losses = ctx.empty({M}, DType::f64),
      .gathered = ctx.empty({labelled.rows.defined() ? M : 0, D}, x.dtype()),
      .logits = ctx.empty({rows, ld}, x.dtype()),
      .products = ctx.empty({products}, x.dtype()),
      .column_sums = ctx.empty({dbias.defined() ? column_sum_pieces(rows) * V : 0}, x.dtype()),
      .bias_sums = ctx.empty({dbias.defined() ? V : 0}, x.dtype()),
      .turned = turns ? ctx.empty({D, V}, x.dtype()) : Tensor()};
  if (M == 0 && dweight.defined()) fill(ctx, dweight, 0);
  if (M == 0 && dbias.defined()) fill(ctx, dbias, 0);
  dispatch_floating(ctx, "vocabulary_head", x.dtype(), [&]<class T>() {
    head_cuda_body<T>(ctx, x, weight, bias, labelled, results, scratch, dx, dweight, dbias);
  });
}

}  // namespace
}  // namespace eigentrace::kernels
#endif
