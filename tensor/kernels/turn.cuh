#pragma once
// A weight's copy with its axes exchanged, for products that read it better so.
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/blas.h"
#include "tensor/context.h"
#include "tensor/launch.h"

namespace eigentrace::kernels {
namespace {

/// True iff x W, W [out, in], is better made from a copy of Wᵀ: cuBLASLt's TF32 kernels reach 300 TFLOP/s on
/// an H200 where K is dense in both operands, else 220; the copy takes 2 µs. The more so where W is wide: 65
/// µs became 42 (51200 rows, 128 × 512).
inline bool turns_weight(const Context& ctx, const Tensor& weight, int64_t rows) {
  const int64_t out = weight.dim(0), in = weight.dim(1), size = rows * out * in;
  return ctx.device().is_cuda() && ctx.precision == Precision::tf32 && weight.dtype() == DType::f32 &&
         weight.stride(1) == 1 && out % 4 == 0 && in % 4 == 0 &&
         size >= (in >= 4 * out ? int64_t{1} << 30 : int64_t{1} << 31);
}
constexpr int turn_tile = 32;
/// y = xᵀ, y [columns, rows] dense. Block (tile of columns, tile of rows), 32 × 8 threads.
template <class T>
__global__ void turn_kernel(const T* x, int64_t ld, int rows, int columns, T* y) {
  __shared__ T tile[turn_tile][turn_tile + 1];
  const int x_column = static_cast<int>(blockIdx.x) * turn_tile + static_cast<int>(threadIdx.x),
            y_column = static_cast<int>(blockIdx.y) * turn_tile + static_cast<int>(threadIdx.x);
  for (int i = static_cast<int>(threadIdx.y); i < turn_tile; i += 8) {
    const int row = static_cast<int>(blockIdx.y) * turn_tile + i;
    if (row < rows && x_column < columns) tile[i][threadIdx.x] = x[row * ld + x_column];
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.y); i < turn_tile; i += 8) {
    const int row = static_cast<int>(blockIdx.x) * turn_tile + i;
    if (row < columns && y_column < rows)
      y[static_cast<int64_t>(row) * rows + y_column] = tile[threadIdx.x][i];
  }
}
/// wᵀ as a copy's transpose.
template <class T>
Matrix<const T> turned(Context& ctx, const Tensor& weight, Tensor& copy) {
  const int out = static_cast<int>(weight.dim(0)), in = static_cast<int>(weight.dim(1));
  launch(ctx, turn_kernel<T>, dim3(blocks_for(in, turn_tile), blocks_for(out, turn_tile)), dim3(turn_tile, 8),
         0, weight.data<T>(), weight.stride(0), out, in, copy.data<T>());
  return Matrix<const T>{copy.data<T>(), out};
}

}  // namespace
}  // namespace eigentrace::kernels
#endif
