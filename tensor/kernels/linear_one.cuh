#pragma once
// Products with one input column on CUDA, y = x w + b and dw = Σ_rows dy x, db = Σ_rows dy: what a model of
// single numbers begins with. Bound by memory: one write of y, one read of dy; CIFAR (51200 × 512) 25 µs each
// at 4.2 TB/s, where kernels that make tiles of products take 58 and 75.
#ifdef EIGENTRACE_WITH_CUDA
#include <algorithm>

#include "tensor/column_sums.h"
#include "tensor/dispatch.h"

namespace eigentrace::kernels {

constexpr int64_t one_rows = 64;  // of a block forward

template <class S>
struct OneColumn {
  Rows<S> y;  // or dy
  const S* x;
  int64_t x_stride;
  const S *w = nullptr, *bias = nullptr;  // bias: or null
  int64_t w_stride = 1, bias_stride = 1;
};

/// Block (strip of 32 · width columns, rows): eight warps, each every eighth row.
template <int width, class S, class T = Arithmetic<S>>
__global__ void __launch_bounds__(256) one_column_kernel(const __grid_constant__ OneColumn<S> o) {
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x) * width;
  if (column >= o.y.cols) return;
  Vec<T, width> w, bias;
#pragma unroll
  for (int i = 0; i < width; ++i) {
    w.x[i] = T(o.w[(column + i) * o.w_stride]);
    if (o.bias) bias.x[i] = T(o.bias[(column + i) * o.bias_stride]);
  }
  T x[one_rows / 8];
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * one_rows + threadIdx.y;
#pragma unroll
  for (int k = 0; k < one_rows / 8; ++k)
    x[k] = begin + 8 * k < o.y.rows ? T(o.x[(begin + 8 * k) * o.x_stride]) : T(0);
#pragma unroll
  for (int k = 0; k < one_rows / 8; ++k) {
    const int64_t row = begin + 8 * k;
    if (row >= o.y.rows) return;
    Vec<T, width> y;
#pragma unroll
    for (int i = 0; i < width; ++i) y.x[i] = x[k] * w.x[i] + bias.x[i];
    store_as(o.y.data + row * o.y.stride + column, y);
  }
}

/// Block (strip, piece of `length` rows): its Σ dy x and Σ dy to sums [pieces, 2, cols].
template <int width, class S, class T = Arithmetic<S>>
__global__ void __launch_bounds__(256)
    one_column_sums_kernel(const __grid_constant__ OneColumn<S> o, int64_t length, T* sums) {
  constexpr int at_once = 8;
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x) * width;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * length,
                end = begin + length < o.y.rows ? begin + length : o.y.rows;
  Vec<T, width> sum, product;
  if (column < o.y.cols)
    for (int64_t first = begin + threadIdx.y; first < end; first += 8 * at_once) {
      Vec<T, width> dy[at_once];
      T x[at_once];
#pragma unroll
      for (int k = 0; k < at_once; ++k) {
        const int64_t row = first + 8 * k;
        x[k] = T(0);
        if (row >= end) continue;
        dy[k] = load_as<T, width>(o.y.data + row * o.y.stride + column);
        x[k] = T(o.x[row * o.x_stride]);
      }
#pragma unroll
      for (int k = 0; k < at_once; ++k)
#pragma unroll
        for (int i = 0; i < width; ++i) sum.x[i] += dy[k].x[i], product.x[i] += dy[k].x[i] * x[k];
    }
  __shared__ T partial[2][8][32 * width];
#pragma unroll
  for (int i = 0; i < width; ++i) {
    partial[0][threadIdx.y][threadIdx.x * width + i] = product.x[i];
    partial[1][threadIdx.y][threadIdx.x * width + i] = sum.x[i];
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.y * 32 + threadIdx.x); i < 2 * 32 * width; i += 256) {
    const int which = i / (32 * width), at = i % (32 * width);
    const int64_t j = static_cast<int64_t>(blockIdx.x) * 32 * width + at;
    if (j >= o.y.cols) continue;
    T total = 0;
#pragma unroll
    for (int warp = 0; warp < 8; ++warp) total += partial[which][warp][at];
    sums[(2 * blockIdx.y + which) * o.y.cols + j] = total;
  }
}

template <class S>
bool one_column_wide(const Rows<S>& y) {
  constexpr int64_t width = vec_width<Arithmetic<S>>;
  return y.cols % width == 0 && y.stride % width == 0 && aligned_for_vec(y.data);
}

template <class S>
void one_column(const Context& ctx, const OneColumn<S>& o) {
  if (o.y.rows * o.y.cols == 0) return;
  constexpr int most = vec_width<Arithmetic<S>>;
  const int width = one_column_wide(o.y) ? most : 1;
  launch(ctx, width > 1 ? one_column_kernel<most, S> : one_column_kernel<1, S>,
         dim3(blocks_for(o.y.cols, 32 * width), blocks_for(o.y.rows, one_rows)), dim3(32, 8), 0, o);
}

/// Rows of a piece; numbers of its sums' memory.
inline int64_t one_column_length(int64_t rows) { return std::max<int64_t>(64, (rows + 263) / 264); }
inline int64_t one_column_scratch(int64_t rows, int64_t columns) {
  const int64_t length = one_column_length(rows);
  return 2 * columns * ((rows + length - 1) / length);
}
/// db: or null.
template <class S, class T = Arithmetic<S>>
void one_column_sums(const Context& ctx, const OneColumn<S>& o, T* dw, T* db, T* sums) {
  constexpr int most = vec_width<T>;
  const int64_t length = one_column_length(o.y.rows), pieces = (o.y.rows + length - 1) / length;
  const int width = one_column_wide(o.y) ? most : 1;
  if (o.y.rows * o.y.cols > 0)
    launch(ctx, width > 1 ? one_column_sums_kernel<most, S> : one_column_sums_kernel<1, S>,
           dim3(blocks_for(o.y.cols, 32 * width), static_cast<unsigned>(pieces)), dim3(32, 8), 0, o, length,
           sums);
  sum_rows(ctx, sums, 1, pieces, 2 * o.y.cols, SplitSink<T>{dw, db, o.y.cols});
}

}  // namespace eigentrace::kernels
#endif
