#pragma once
// y[j] = Σ_r x[r, j] on CUDA, in an order that the shape fixes: pieces of rows side by side, then the pieces.
#ifdef EIGENTRACE_WITH_CUDA
#include <algorithm>

#include "tensor/dispatch.h"

namespace eigentrace::kernels {

constexpr int column_sum_warps = 8;  // of a block; each takes every eighth row

/// Width columns a lane (16-byte loads where Width · sizeof(T) is 16).
template <class T, int Width>
struct alignas(Width * sizeof(T)) Pack {
  T at[Width];
};

/// T: what rows lie in memory as; sums are of type Arithmetic<T>.
/// Block (strip, piece): `length` rows from piece · length on, columns of the strip; to y[piece · piece_step
/// + column · y_stride].
template <class T, int Width>
__global__ void __launch_bounds__(32 * column_sum_warps)
    column_sum_kernel(Rows<T> x, int64_t length, Arithmetic<T>* y, int64_t piece_step, int64_t y_stride) {
  __shared__ Arithmetic<T> partial[column_sum_warps][32 * Width + 1];
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * 32 + lane) * Width;
  const int64_t begin = blockIdx.y * length, end = begin + length < x.rows ? begin + length : x.rows;
  Arithmetic<T> sum[Width] = {};
  if (column < x.cols) {
#pragma unroll 4
    for (int64_t r = begin + warp; r < end; r += column_sum_warps) {
      const auto pack = *reinterpret_cast<const Pack<T, Width>*>(x.data + r * x.stride + column);
#pragma unroll
      for (int i = 0; i < Width; ++i) sum[i] += pack.at[i];
    }
  }
#pragma unroll
  for (int i = 0; i < Width; ++i) partial[warp][lane * Width + i] = sum[i];
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < 32 * Width; i += 32 * column_sum_warps) {
    const int64_t j = static_cast<int64_t>(blockIdx.x) * 32 * Width + i;
    if (j >= x.cols) break;
    Arithmetic<T> total = 0;
    for (int w = 0; w < column_sum_warps; ++w) total += partial[w][i];
    y[blockIdx.y * piece_step + j * y_stride] = total;
  }
}

template <class T>
void launch_column_sum(Context& ctx, const Rows<T>& x, int64_t length, int64_t pieces, Arithmetic<T>* y,
                       int64_t piece_step, int64_t y_stride) {
  constexpr int wide = 16 / sizeof(T);
  const bool aligned =
      reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.stride % wide == 0 && x.cols % wide == 0;
  const int width = aligned ? wide : 1;
  const dim3 grid(blocks_for(x.cols, 32 * width), static_cast<unsigned>(pieces));
  launch(ctx, aligned ? column_sum_kernel<T, wide> : column_sum_kernel<T, 1>, grid, 32 * column_sum_warps, 0,
         x, length, y, piece_step, y_stride);
}

inline int64_t column_sum_length(int64_t rows) {
  return std::max<int64_t>(256, (rows + 511) / 512);  // at most 512 pieces
}
inline int64_t column_sum_pieces(int64_t rows) {
  return (rows + column_sum_length(rows) - 1) / column_sum_length(rows);
}
/// scratch: column_sum_pieces(rows) · columns elements.
template <class T>
void column_sum(Context& ctx, const Rows<T>& x, Arithmetic<T>* y, int64_t y_stride, Arithmetic<T>* scratch) {
  if (x.cols <= 0) return;
  const int64_t pieces = column_sum_pieces(x.rows), length = column_sum_length(x.rows);
  if (pieces <= 1) return launch_column_sum(ctx, x, length, 1, y, 0, y_stride);
  launch_column_sum(ctx, x, length, pieces, scratch, x.cols, 1);
  launch_column_sum(ctx, Rows<Arithmetic<T>>{scratch, pieces, x.cols, x.cols}, pieces, 1, y, 0, y_stride);
}

}  // namespace eigentrace::kernels
#endif
