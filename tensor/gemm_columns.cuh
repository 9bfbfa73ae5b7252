#pragma once
// The last columns of a product whose rows of C are no whole 16 bytes: one to three dot products a row, in
// float32. cuBLASLt has tensor cores for the columns before them only, and a tile of 128 for one column more
// is a third of a product of 385. 32768 rows, K 128: 16.8 MB, 4 µs.
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/cuda_blas.h"
#include "tensor/launch.h"
#include "tensor/vec.h"

namespace eigentrace {

constexpr int column_warps = 8, column_rows = 8;  ///< rows of a warp

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

/// True iff all columns but the last one to three are a product that cuBLASLt gives to tensor cores.
inline bool has_last_columns(const Context& ctx, const Product<float>& p) {
  constexpr int64_t least = 64, large = int64_t{1} << 20;
  const auto lies = [](const auto& x) {
    return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.ld % 4 == 0;
  };
  return ctx.precision == Precision::tf32 && p.N % 4 != 0 && p.N > least && p.K % 4 == 0 && p.batch == 1 &&
         p.M * p.N * p.K >= large && p.beta == 0 && p.bias_stride == 1 && !p.a.transposed && p.b.transposed &&
         !p.c.transposed && lies(p.a) && lies(p.b) && lies(p.c);
}
inline void last_columns(const Context& ctx, const Product<float>& p) {
  auto* kernel = p.N % 4 == 1   ? last_columns_kernel<1>
                 : p.N % 4 == 2 ? last_columns_kernel<2>
                                : last_columns_kernel<3>;
  launch(ctx, kernel, blocks_for(p.M, column_warps * column_rows), 32 * column_warps, 0, p);
}

}  // namespace eigentrace
#endif
