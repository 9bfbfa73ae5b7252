#pragma once
// Mean and squares of blocks of rows become a column's mean and 1/σ. For batch_norm.cu and its CUDA bodies.
#include <cstdint>

#include "tensor/hd.h"
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/launch.h"
#endif

namespace eigentrace::kernels {

struct Blocks {
  int64_t size, count;
};

/// Mean of n numbers, and the sum of the squares around it.
template <class T>
struct Moments {
  T mean, square;
  int64_t n;
  ET_HD void add(const Moments& other) {
    const T delta = other.mean - mean, share = static_cast<T>(other.n) / static_cast<T>(n + other.n);
    square += other.square + delta * delta * static_cast<T>(n) * share;
    mean += delta * share;
    n += other.n;
  }
};

template <class T>
struct MergedBlocks {
  const T *means, *squares;  // [blocks, D]
  Blocks blocks;
  int64_t rows, columns;
  T *mean, *rstd, *running_mean, *running_var;  // running: null or updated
  T epsilon, momentum;

  ET_HD Moments<T> block(int64_t k, int64_t i) const {
    return {means[k * columns + i], squares[k * columns + i],
            (k + 1) * blocks.size < rows ? blocks.size : rows - k * blocks.size};
  }
  ET_HD void write(int64_t i, const Moments<T>& all) const {
    const T var = all.square / static_cast<T>(rows);
    mean[i] = all.mean;
    rstd[i] = T(1) / sqrt(var + epsilon);
    if (!running_mean) return;
    running_mean[i] = momentum * running_mean[i] + (T(1) - momentum) * all.mean;
    running_var[i] = momentum * running_var[i] + (T(1) - momentum) * var;
  }
};

#ifdef EIGENTRACE_WITH_CUDA
/// 8 columns a block, 64 threads a column: each takes every 64th block, around the mean of its first one (no
/// division in the loop), then the threads pairwise.
constexpr int merge_columns = 8, merge_threads = 64;
template <class T>
__global__ void __launch_bounds__(merge_columns* merge_threads)
    merge_kernel(const __grid_constant__ MergedBlocks<T> m) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * merge_columns + threadIdx.x;
  Moments<T>* shared = dynamic_shared<Moments<T>>();
  Moments<T> all{0, 0, 0};
  if (column < m.columns && threadIdx.y < m.blocks.count) {
    const T origin = m.means[threadIdx.y * m.columns + column];
    T sum = 0, square = 0;
#pragma unroll 8
    for (int64_t k = threadIdx.y; k < m.blocks.count; k += merge_threads) {
      const Moments<T> next = m.block(k, column);
      const T from = next.mean - origin, size = static_cast<T>(static_cast<int>(next.n));
      sum += size * from, square += next.square + size * from * from, all.n += next.n;
    }
    const T mean = sum / static_cast<T>(all.n), around = square - sum * mean;
    all.mean = origin + mean, all.square = around < 0 ? T(0) : around;
  }
  shared[threadIdx.y * merge_columns + threadIdx.x] = all;
  for (unsigned half = merge_threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.y >= half) continue;
    const Moments<T> other = shared[(threadIdx.y + half) * merge_columns + threadIdx.x];
    if (other.n > 0) all.add(other);
    shared[threadIdx.y * merge_columns + threadIdx.x] = all;
  }
  if (threadIdx.y == 0 && column < m.columns) m.write(column, all);
}
#endif

}  // namespace eigentrace::kernels
