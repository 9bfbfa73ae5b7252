#pragma once
// What both bodies of batch_norm.cu share, and its CUDA bodies.
//
// Forward: a block holds 128 rows of a tile of columns in registers, so that its mean and the squares around
// it cost one read of x; a second launch merges the blocks; a third normalises. Backward: Σ dy and Σ dy x̂ of
// chunks of rows in one pass, their sums, then dx. Bytes an element, float32: 12 forward (x twice, y), 20
// backward (x and dy twice, dx). CIFAR, 105 MB an activation: floors of 75 µs and 125 µs at 4.2 TB/s;
// IMDB, 12.6 MB: 9 µs and 15 µs.
#include <algorithm>

#include "tensor/column_sums.h"
#include "tensor/elements.h"
#include "tensor/kernels.h"

namespace eigentrace::kernels {

constexpr int64_t batch_norm_rows = 128;  // of a block of CUDA's first launch

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

template <class S>
struct BatchNormBackwardX {
  using T = Arithmetic<S>;
  Rows<S> x, dy, dx;
  const T *mean, *rstd, *weight;
  const T *dweight, *dbias;  // null in evaluation: the statistics do not depend on x
  Rows<S> dsum;              // data null: absent
  ET_HD void operator()(int64_t row, int64_t i) const {
    T g = dy.data[row * dy.stride + i];
    if (dweight) {
      const T normed = (x.data[row * x.stride + i] - mean[i]) * rstd[i];
      g -= (dbias[i] + normed * dweight[i]) / static_cast<T>(x.rows);
    }
    const T sent = dsum.data ? T(dsum.data[row * dsum.stride + i]) : T(0);
    dx.data[row * dx.stride + i] = sent + weight[i] * rstd[i] * g;
  }
};

#ifdef EIGENTRACE_WITH_CUDA
/// Σ over the threads of a column (8 of them), to all; shared: [8, 32] packs.
template <class T, int width>
__device__ __forceinline__ Vec<T, width> sum_of_column(const Vec<T, width>& value, Vec<T, width>* shared) {
  __syncthreads();
  shared[threadIdx.y * 32 + threadIdx.x] = value;
  __syncthreads();
  Vec<T, width> sum = shared[threadIdx.x];
#pragma unroll
  for (int y = 1; y < 8; ++y)
#pragma unroll
    for (int i = 0; i < width; ++i) sum.x[i] += shared[y * 32 + threadIdx.x].x[i];
  return sum;
}

template <int width, class S, class T = Arithmetic<S>>
__global__ void __launch_bounds__(256) batch_moments_kernel(Rows<S> x, T* means, T* squares) {
  constexpr int held = batch_norm_rows / 8;
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x) * width;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * batch_norm_rows;
  const int64_t left = x.rows - begin;
  const int rows = static_cast<int>(left < batch_norm_rows ? left : batch_norm_rows);
  const bool inside = column < x.cols;
  Vec<T, width> row[held], sum;
#pragma unroll
  for (int j = 0; j < held; ++j) {
    const int r = j * 8 + static_cast<int>(threadIdx.y);
    if (inside && r < rows) row[j] = load_as<T, width>(x.data + (begin + r) * x.stride + column);
  }
#pragma unroll
  for (int j = 0; j < held; ++j)
#pragma unroll
    for (int i = 0; i < width; ++i) sum.x[i] += row[j].x[i];
  Vec<T, width>* shared = dynamic_shared<Vec<T, width>>();
  Vec<T, width> mean = sum_of_column(sum, shared), square;
#pragma unroll
  for (int i = 0; i < width; ++i) mean.x[i] /= static_cast<T>(rows);
#pragma unroll
  for (int j = 0; j < held; ++j)
    if (j * 8 + static_cast<int>(threadIdx.y) < rows)
#pragma unroll
      for (int i = 0; i < width; ++i) square.x[i] += (row[j].x[i] - mean.x[i]) * (row[j].x[i] - mean.x[i]);
  square = sum_of_column(square, shared);
  if (threadIdx.y > 0 || !inside) return;
  store_vec(means + blockIdx.y * x.cols + column, mean);
  store_vec(squares + blockIdx.y * x.cols + column, square);
}

/// 32 columns a block, 32 threads a column: each merges every 32nd block, then the threads pairwise.
template <class T>
__global__ void __launch_bounds__(1024) merge_kernel(const __grid_constant__ MergedBlocks<T> m) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x;
  Moments<T>* shared = dynamic_shared<Moments<T>>();
  Moments<T> all{0, 0, 0};
  if (column < m.columns && threadIdx.y < m.blocks.count) {
    all = m.block(threadIdx.y, column);
#pragma unroll 4
    for (int64_t k = threadIdx.y + 32; k < m.blocks.count; k += 32) all.add(m.block(k, column));
  }
  shared[threadIdx.y * 32 + threadIdx.x] = all;
  for (unsigned half = 16; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.y >= half) continue;
    const Moments<T> other = shared[(threadIdx.y + half) * 32 + threadIdx.x];
    if (other.n > 0) all.add(other);
    shared[threadIdx.y * 32 + threadIdx.x] = all;
  }
  if (threadIdx.y == 0 && column < m.columns) m.write(column, all);
}

template <class S, class T>
void batch_moments_cuda(const Context& ctx, const Rows<S>& x, const MergedBlocks<T>& m) {
  if (x.cols == 0) return;
  T *means = const_cast<T*>(m.means), *squares = const_cast<T*>(m.squares);
  const auto start = [&]<int width>() {
    const dim3 grid(blocks_for(x.cols, 32 * width), static_cast<unsigned>(m.blocks.count));
    launch(ctx, batch_moments_kernel<width, S>, grid, dim3(32, 8), 256 * width * sizeof(T), x, means,
           squares);
  };
  if (x.cols % vec_width<T> == 0 && x.stride % vec_width<T> == 0 && aligned_for_vec(x.data))
    start.template operator()<vec_width<T>>();
  else
    start.template operator()<1>();
  launch(ctx, merge_kernel<T>, blocks_for(x.cols, 32), dim3(32, 32), 1024 * sizeof(Moments<T>), m);
}

/// f(row, column) for bf16 rows beside float32 columns: a warp a piece of 32 columns of four rows.
template <class F>
__global__ void __launch_bounds__(256) batch_rows_kernel(int64_t rows, int64_t columns, F f) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x;
  if (column >= columns) return;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const int64_t row = (static_cast<int64_t>(blockIdx.y) * 4 + k) * 8 + threadIdx.y;
    if (row < rows) f(row, column);
  }
}
template <class F>
void each_of_rows(const Context& ctx, int64_t rows, int64_t columns, const F& f) {
  if (rows > int64_t{65535} * 32) return for_each_in_rows(ctx, rows, columns, f);
  if (rows * columns > 0)
    launch(ctx, batch_rows_kernel<F>, dim3(blocks_for(columns, 32), blocks_for(rows, 32)), dim3(32, 8), 0,
           rows, columns, f);
}

struct BatchNormApply {
  template <class T>
  ET_HD T operator()(T x, T mean, T rstd, T weight, T bias) const {
    return (x - mean) * rstd * weight + bias;
  }
};

/// Chunk k of rows: partial[k, 0] = Σ dy x̂, partial[k, 1] = Σ dy.
template <int width, class S, class T = Arithmetic<S>>
__global__ void __launch_bounds__(256)
    batch_sums_kernel(Rows<S> x, Rows<S> dy, const T* mean, const T* rstd, int64_t chunk, T* partial) {
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x) * width;
  const int64_t begin = blockIdx.y * chunk, end = begin + chunk < x.rows ? begin + chunk : x.rows;
  const bool inside = column < x.cols;
  Vec<T, width> sum_x, sum, m, s;
  if (inside) {
    m = load_vec<width>(mean + column), s = load_vec<width>(rstd + column);
#pragma unroll 4
    for (int64_t r = begin + threadIdx.y; r < end; r += 8) {
      const Vec<T, width> v = load_as<T, width>(x.data + r * x.stride + column);
      const Vec<T, width> g = load_as<T, width>(dy.data + r * dy.stride + column);
#pragma unroll
      for (int i = 0; i < width; ++i) {
        sum_x.x[i] += g.x[i] * ((v.x[i] - m.x[i]) * s.x[i]);
        sum.x[i] += g.x[i];
      }
    }
  }
  Vec<T, width>* shared = dynamic_shared<Vec<T, width>>();
  sum_x = sum_of_column(sum_x, shared);
  sum = sum_of_column(sum, shared);
  if (threadIdx.y > 0 || !inside) return;
  store_vec(partial + 2 * blockIdx.y * x.cols + column, sum_x);
  store_vec(partial + (2 * blockIdx.y + 1) * x.cols + column, sum);
}

struct BatchNormBackward {  // training; factor: 1/rows; dsum: none or one
  double factor;
  template <class T, class... Sent>
  ET_HD T operator()(T dy, T x, T mean, T rstd, T weight, T dweight, T dbias, Sent... dsum) const {
    const T normed = (x - mean) * rstd;
    return (T(0) + ... + dsum) + weight * rstd * (dy - (dbias + normed * dweight) * T(factor));
  }
};
struct BatchNormBackwardFixed {
  template <class T, class... Sent>
  ET_HD T operator()(T dy, T rstd, T weight, Sent... dsum) const {
    return (T(0) + ... + dsum) + weight * rstd * dy;
  }
};

template <size_t n>
std::array<Tensor, n - 1> without_last(const std::array<Tensor, n>& all) {
  std::array<Tensor, n - 1> rest;
  std::copy(all.begin(), all.end() - 1, rest.begin());
  return rest;
}

inline void batch_norm_backward_cuda(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& mean,
                                     const Tensor& rstd, bool training, const Tensor& dy, Tensor& dx,
                                     Tensor& dweight, Tensor& dbias, const Tensor& dsum) {
  const int64_t width = x.dim(-1), rows = width == 0 ? 0 : x.numel() / width;
  const int64_t tiles = std::max<int64_t>(1, (width + 127) / 128), wanted = std::max<int64_t>(1, 528 / tiles);
  const int64_t chunk = std::max<int64_t>(64, (rows + wanted - 1) / wanted),
                chunks = (rows + chunk - 1) / chunk;
  const Tensor partial = ctx.empty({chunks, 2, width}, weight.dtype());
  dispatch_stored(ctx, "batch_norm_backward", x.dtype(), [&]<class S>() {
    using T = Arithmetic<S>;
    const Rows<S> vx = rows_of<S>(x, "batch_norm_backward: x"),
                  vy = rows_of<S>(dy, "batch_norm_backward: dy");
    const auto start = [&]<int w>() {
      launch(ctx, batch_sums_kernel<w, S>, dim3(blocks_for(width, 32 * w), static_cast<unsigned>(chunks)),
             dim3(32, 8), 256 * w * sizeof(T), vx, vy, mean.data<T>(), rstd.data<T>(), chunk,
             partial.data<T>());
    };
    const bool wide = rows_are_aligned<S>(x) && rows_are_aligned<S>(dy) && rows_are_aligned<T>(mean) &&
                      rows_are_aligned<T>(rstd);
    if (x.numel() > 0 && wide) start.template operator()<vec_width<T>>();
    if (x.numel() > 0 && !wide) start.template operator()<1>();
    sum_rows(ctx, partial.data<T>(), 1, chunks, 2 * width,
             SplitSink<T>{dweight.data<T>(), dbias.data<T>(), width});
    if (!dx.defined()) return;
    if constexpr (!std::is_same_v<S, T>)
      return each_of_rows(
          ctx, rows, width,
          BatchNormBackwardX<S>{
              vx, vy, rows_of<S>(dx, "batch_norm_backward: dx"), mean.data<T>(), rstd.data<T>(),
              weight.data<T>(), training ? dweight.data<T>() : nullptr, training ? dbias.data<T>() : nullptr,
              dsum.defined() ? rows_of<S>(dsum, "batch_norm_backward: dsum") : Rows<S>{nullptr, 0, 0, 0}});
    else {
      const auto row = [&](const Tensor& v) { return v.expand(x.shape()); };
      const std::array to{dx};
      const BatchNormBackward with_statistics{1.0 / static_cast<double>(std::max<int64_t>(rows, 1))};
      const std::array all{dy, x, row(mean), row(rstd), row(weight), row(dweight), row(dbias), dsum};
      const std::array fixed{dy, row(rstd), row(weight), dsum};
      if (training && dsum.defined())
        map_elements_cuda<T>(ctx, with_statistics, all, to);
      else if (training)
        map_elements_cuda<T>(ctx, with_statistics, without_last(all), to);
      else if (dsum.defined())
        map_elements_cuda<T>(ctx, BatchNormBackwardFixed{}, fixed, to);
      else
        map_elements_cuda<T>(ctx, BatchNormBackwardFixed{}, without_last(fixed), to);
    }
  });
}
#endif

}  // namespace eigentrace::kernels
