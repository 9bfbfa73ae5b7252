#pragma once
// A few columns of C, or rows of a weight gradient, more than whole tiles: dot products in float32, so that
// cuBLASLt makes the others. TF32: it has tensor cores for whole 16 bytes of C's rows only. float32: the few
// cost it a tile of their own. Bound by one read of the long operand: 32768 rows, K 128: 16.8 MB, 4 µs.
#ifdef EIGENTRACE_WITH_CUDA
#include <algorithm>

#include "tensor/column_sums.h"
#include "tensor/cuda_blas.h"
#include "tensor/launch.h"
#include "tensor/vec.h"

namespace eigentrace {

constexpr int column_warps = 8, column_rows = 8;  ///< of a block; rows of a warp

template <int columns>
__global__ void __launch_bounds__(32 * column_warps) last_columns_kernel(Product<float> p) {
  const int lane = static_cast<int>(threadIdx.x % 32), K = static_cast<int>(p.K);
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * column_warps + threadIdx.x / 32) * column_rows,
                column = p.N - columns;
  float sums[column_rows][columns] = {};
  for (int k = 4 * lane; k < K; k += 128) {
    Vec<float, 4> w[columns], x[column_rows];
#pragma unroll
    for (int j = 0; j < columns; ++j) w[j] = load_vec<4>(p.b.data + (column + j) * p.b.ld + k);
#pragma unroll
    for (int r = 0; r < column_rows; ++r)
      if (first + r < p.M) x[r] = load_vec<4>(p.a.data + (first + r) * p.a.ld + k);
#pragma unroll
    for (int r = 0; r < column_rows; ++r)
#pragma unroll
      for (int j = 0; j < columns; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[r][j] += x[r].x[e] * w[j].x[e];
  }
#pragma unroll
  for (int r = 0; r < column_rows; ++r)
#pragma unroll
    for (int j = 0; j < columns; ++j) {
#pragma unroll
      for (int step = 16; step > 0; step /= 2) sums[r][j] += __shfl_xor_sync(0xFFFFFFFFu, sums[r][j], step);
      if (lane == 0 && first + r < p.M)
        p.c.data[(first + r) * p.c.ld + column + j] =
            p.alpha * sums[r][j] + (p.bias ? p.bias[column + j] : 0.0f);
    }
}

/// Columns, or rows, of that many that are better made apart from the others; 0: none. In float32 a small
/// product (24576 × 260, K 128) saves less than another launch costs.
inline int64_t beside_whole_tiles(const Context& ctx, int64_t count, int64_t multiplications) {
  constexpr int64_t large = int64_t{1} << 20, large_float32 = int64_t{1} << 30, tile = 64, most = 4;
  if (ctx.precision == Precision::tf32) return count > tile && multiplications >= large ? count % 4 : 0;
  const bool few = count > tile && count % tile <= most && multiplications >= large_float32;
  return ctx.precision == Precision::fp32 && few ? count % tile : 0;
}
inline bool rows_of_vectors(const Matrix<const float>& x) {
  return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.ld % 4 == 0;
}

/// How many of C's last columns are last_columns's.
inline int64_t count_last_columns(const Context& ctx, const Product<float>& p) {
  const bool can = p.K % 4 == 0 && p.batch == 1 && p.beta == 0 && p.bias_stride == 1 && !p.a.transposed &&
                   p.b.transposed && !p.c.transposed && rows_of_vectors(p.a) && rows_of_vectors(p.b) &&
                   rows_of_vectors({p.c.data, p.c.ld});
  return can ? beside_whole_tiles(ctx, p.N, p.M * p.N * p.K) : 0;
}
inline void last_columns(const Context& ctx, const Product<float>& p, int64_t columns) {
  auto* kernel = columns == 1   ? last_columns_kernel<1>
                 : columns == 2 ? last_columns_kernel<2>
                 : columns == 3 ? last_columns_kernel<3>
                                : last_columns_kernel<4>;
  launch(ctx, kernel, blocks_for(p.M, column_warps * column_rows), 32 * column_warps, 0, p);
}

/// Block (strip of 128 columns, piece of `length` of K): C's last rows, Σ_k a(k, M − rows + i) b(k, ·), to
/// sums [pieces, rows, N]. Each warp takes every eighth k.
template <int rows>
__global__ void __launch_bounds__(32 * column_warps)
    last_rows_kernel(Product<float> p, int64_t length, float* sums) {
  constexpr int at_once = 4, strip = 128;
  __shared__ float partial[column_warps][rows][strip];
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int64_t column = static_cast<int64_t>(blockIdx.x) * strip + 4 * lane;
  const int64_t begin = blockIdx.y * length, end = begin + length < p.K ? begin + length : p.K;
  const float* a = p.a.data + p.M - rows;
  Vec<float, 4> sum[rows];
  if (column < p.N)
    for (int64_t first = begin + warp; first < end; first += column_warps * at_once) {
      Vec<float, 4> x[at_once];
      float w[at_once][rows] = {};
#pragma unroll
      for (int u = 0; u < at_once; ++u) {
        const int64_t k = first + column_warps * u;
        if (k >= end) continue;
        x[u] = load_vec<4>(p.b.data + k * p.b.ld + column);
#pragma unroll
        for (int i = 0; i < rows; ++i) w[u][i] = a[k * p.a.ld + i];
      }
#pragma unroll
      for (int u = 0; u < at_once; ++u)
#pragma unroll
        for (int i = 0; i < rows; ++i)
#pragma unroll
          for (int e = 0; e < 4; ++e) sum[i].x[e] += w[u][i] * x[u].x[e];
    }
#pragma unroll
  for (int i = 0; i < rows; ++i)
#pragma unroll
    for (int e = 0; e < 4; ++e) partial[warp][i][4 * lane + e] = sum[i].x[e];
  __syncthreads();
  for (int at = static_cast<int>(threadIdx.x); at < rows * strip; at += 32 * column_warps) {
    const int i = at / strip;
    const int64_t j = static_cast<int64_t>(blockIdx.x) * strip + at % strip;
    if (j >= p.N) continue;
    float total = 0;
    for (int w = 0; w < column_warps; ++w) total += partial[w][i][at % strip];
    sums[(blockIdx.y * rows + i) * p.N + j] = total;
  }
}

/// How many of the last rows of a weight gradient C [M,N], K long, are last_rows's. TF32 has kernels of ours
/// that take them along.
inline int64_t count_last_rows(const Context& ctx, int64_t M, int64_t N, int64_t K) {
  return ctx.precision == Precision::fp32 && N % 4 == 0 ? beside_whole_tiles(ctx, M, M * N * K) : 0;
}
/// Rows of K that a block sums; numbers of their sums' memory.
inline int64_t last_rows_length(int64_t K) { return std::max<int64_t>(64, (K + 263) / 264); }
inline int64_t last_rows_scratch(int64_t rows, int64_t N, int64_t K) {
  return (K + last_rows_length(K) - 1) / last_rows_length(K) * rows * N;
}
/// Element `at` of the last rows of C, one after another.
struct LastRowsSink {
  Matrix<float> c;
  int64_t first, N;
  ET_HD void put(int64_t at, float value) const {
    const int64_t row = first + at / N, column = at % N;
    c.data[c.transposed ? column * c.ld + row : row * c.ld + column] = value;
  }
};
/// a.transposed, not b, whose rows are whole vectors; alpha 1, beta 0.
inline void last_rows(const Context& ctx, const Product<float>& p, int64_t rows, float* scratch) {
  auto* kernel = rows == 1   ? last_rows_kernel<1>
                 : rows == 2 ? last_rows_kernel<2>
                 : rows == 3 ? last_rows_kernel<3>
                             : last_rows_kernel<4>;
  const int64_t length = last_rows_length(p.K), pieces = (p.K + length - 1) / length;
  launch(ctx, kernel, dim3(blocks_for(p.N, 128), static_cast<unsigned>(pieces)), 32 * column_warps, 0, p,
         length, scratch);
  sum_rows(ctx, scratch, 1, pieces, rows * p.N, LastRowsSink{p.c, p.M - rows, p.N});
}

}  // namespace eigentrace
#endif
