#pragma once
// What both bodies of layer_norm.cu share, and its CUDA bodies.
//
// Rows of up to 32 packs of 16 bytes times 8 (1024 floats): a warp a row, the row in registers, sums by
// shuffles, so that every operand is read once and every result written once. Backward, a block of 8 warps
// goes through a fixed set of rows and sums its part of dw and db on the way; a second launch sums the parts
// in order. Other rows (odd widths, views off 16 bytes): a block a row. Bytes an element, float32, residual
// form: 16 forward (x, branch, sum, y; 20 where the branch is a gated linear unit), 16 to 20 backward. CIFAR,
// 105 MB an activation: floors of 100 µs and 125 µs at 4.2 TB/s; MQAR, 16.8 MB: 16 µs and 20 µs, mostly from
// the L2.
#include <algorithm>

#include "tensor/block_sum.h"
#include "tensor/column_sums.h"
#include "tensor/dispatch.h"
#include "tensor/dropout_stream.h"
#include "tensor/kernels.h"
#include "tensor/math.h"
#include "tensor/vec.h"

namespace eigentrace::kernels {

// S: what rows lie in memory as; T, parameters and statistics: what they are computed with.
template <class S>
struct NormForwardRows {
  using T = Arithmetic<S>;
  Rows<S> x, y;
  Rows<S> branch, sum;  // residual form: branch.data set; then x.data may be null
  const T *weight, *bias;
  T *mean, *rstd, epsilon;
  bool centred;
  DropoutStream mask;  // threshold 0: none
  Rows<S> gate{};      // of norm_forward_gated: what is added to x is branch σ(gate)
};

template <class S>
struct NormBackwardRows {
  using T = Arithmetic<S>;
  Rows<S> x, dy, dsum, dx, dbranch;  // data null: absent
  const T *weight, *mean, *rstd;
  T *partial_weight, *partial_bias;  // [blocks, D] or null
  int64_t rows_per_block;
  bool centred;
  DropoutStream mask;
};

/// Rows of a block of the backward pass: at most 528 blocks.
inline int64_t norm_rows_per_block(int64_t rows) {
  return std::max<int64_t>(8, ((rows + 527) / 528 + 7) / 8 * 8);
}

#ifdef EIGENTRACE_WITH_CUDA
// --- a warp a row ---

constexpr unsigned norm_warps = 8;

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, step);
  return value;
}

template <int packs, class S, bool gated = false>
__global__ void __launch_bounds__(32 * norm_warps)
    norm_forward_warps(const __grid_constant__ NormForwardRows<S> f) {
  using T = Arithmetic<S>;
  constexpr int width = vec_width<T>;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * norm_warps + threadIdx.y;
  if (row >= f.y.rows) return;
  const int n = static_cast<int>(f.y.cols);
  Vec<T, width> x[packs];
#pragma unroll
  for (int k = 0; k < packs; ++k) {
    const int i = static_cast<int>(k * 32 + threadIdx.x) * width;
    if (i < n && f.x.data) x[k] = load_as<T, width>(f.x.data + row * f.x.stride + i);
  }
  if constexpr (gated) {
    Vec<T, width> branch[packs], gate[packs];
#pragma unroll
    for (int k = 0; k < packs; ++k) {
      const int i = static_cast<int>(k * 32 + threadIdx.x) * width;
      if (i >= n) continue;
      branch[k] = load_as<T, width>(f.branch.data + row * f.branch.stride + i);
      gate[k] = load_as<T, width>(f.gate.data + row * f.gate.stride + i);
    }
#pragma unroll
    for (int k = 0; k < packs; ++k) {
      const int i = static_cast<int>(k * 32 + threadIdx.x) * width;
      if (i >= n) continue;
#pragma unroll
      for (int j = 0; j < width; ++j) x[k].x[j] += branch[k].x[j] * sigmoid(gate[k].x[j]);
      store_as(f.sum.data + row * f.sum.stride + i, x[k]);
    }
  } else if (f.branch.data) {
#pragma unroll
    for (int k = 0; k < packs; ++k) {
      const int i = static_cast<int>(k * 32 + threadIdx.x) * width;
      if (i >= n) continue;
      Vec<T, width> b = load_as<T, width>(f.branch.data + row * f.branch.stride + i);
      if (f.mask.threshold) {
        const Vec<T, width> m = f.mask.template factors<T, width>(row * n + i);
#pragma unroll
        for (int j = 0; j < width; ++j) b.x[j] *= m.x[j];
      }
#pragma unroll
      for (int j = 0; j < width; ++j) x[k].x[j] += b.x[j];
      store_as(f.sum.data + row * f.sum.stride + i, x[k]);
    }
  }
  T mean = 0, squares = 0;
  if (f.centred) {
#pragma unroll
    for (int k = 0; k < packs; ++k)  // beyond the row: zeros
#pragma unroll
      for (int j = 0; j < width; ++j) mean += x[k].x[j];
    mean = warp_sum(mean) / static_cast<T>(n);
  }
#pragma unroll
  for (int k = 0; k < packs; ++k)
    if (static_cast<int>(k * 32 + threadIdx.x) * width < n)
#pragma unroll
      for (int j = 0; j < width; ++j) squares += (x[k].x[j] - mean) * (x[k].x[j] - mean);
  const T rstd = T(1) / sqrt(warp_sum(squares) / static_cast<T>(n) + f.epsilon);
  if (threadIdx.x == 0) {
    if (f.centred) f.mean[row] = mean;
    f.rstd[row] = rstd;
  }
#pragma unroll
  for (int k = 0; k < packs; ++k) {
    const int i = static_cast<int>(k * 32 + threadIdx.x) * width;
    if (i >= n) continue;
    const Vec<T, width> w = load_vec<width>(f.weight + i);
    Vec<T, width> b;
    if (f.bias) b = load_vec<width>(f.bias + i);
#pragma unroll
    for (int j = 0; j < width; ++j) x[k].x[j] = (x[k].x[j] - mean) * rstd * w.x[j] + b.x[j];
    store_as(f.y.data + row * f.y.stride + i, x[k]);
  }
}

template <int packs, class S>
__global__ void __launch_bounds__(32 * norm_warps)
    norm_backward_warps(const __grid_constant__ NormBackwardRows<S> f) {
  using T = Arithmetic<S>;
  constexpr int width = vec_width<T>;
  const int n = static_cast<int>(f.dy.cols);
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * f.rows_per_block;
  const int64_t end = begin + f.rows_per_block < f.dy.rows ? begin + f.rows_per_block : f.dy.rows;
  Vec<T, width> w[packs], dw[packs], db[packs];
#pragma unroll
  for (int k = 0; k < packs; ++k) {
    const int i = static_cast<int>(k * 32 + threadIdx.x) * width;
    if (i < n) w[k] = load_vec<width>(f.weight + i);
  }
  for (int64_t row = begin + threadIdx.y; row < end; row += norm_warps) {
    Vec<T, width> x[packs], dy[packs], dsum[packs];
#pragma unroll
    for (int k = 0; k < packs; ++k) {
      const int i = static_cast<int>(k * 32 + threadIdx.x) * width;
      if (i >= n) continue;
      x[k] = load_as<T, width>(f.x.data + row * f.x.stride + i);
      dy[k] = load_as<T, width>(f.dy.data + row * f.dy.stride + i);
      if (f.dsum.data) dsum[k] = load_as<T, width>(f.dsum.data + row * f.dsum.stride + i);
    }
    const T mean = f.centred ? f.mean[row] : T(0), rstd = f.rstd[row];
    T sum_g = 0, sum_gx = 0;
#pragma unroll
    for (int k = 0; k < packs; ++k) {
      if (static_cast<int>(k * 32 + threadIdx.x) * width >= n) continue;
#pragma unroll
      for (int j = 0; j < width; ++j) {
        const T normed = (x[k].x[j] - mean) * rstd, g = dy[k].x[j] * w[k].x[j];
        x[k].x[j] = normed;
        dw[k].x[j] += dy[k].x[j] * normed;
        db[k].x[j] += dy[k].x[j];
        dy[k].x[j] = g;
        sum_g += g;
        sum_gx += g * normed;
      }
    }
    if (!f.dx.data) continue;
    sum_g = f.centred ? warp_sum(sum_g) / static_cast<T>(n) : T(0);
    sum_gx = warp_sum(sum_gx) / static_cast<T>(n);
#pragma unroll
    for (int k = 0; k < packs; ++k) {
      const int i = static_cast<int>(k * 32 + threadIdx.x) * width;
      if (i >= n) continue;
      Vec<T, width> dx;
#pragma unroll
      for (int j = 0; j < width; ++j)
        dx.x[j] = dsum[k].x[j] + rstd * (dy[k].x[j] - sum_g - x[k].x[j] * sum_gx);
      if (f.dx.data != f.dbranch.data) store_as(f.dx.data + row * f.dx.stride + i, dx);
      if (!f.dbranch.data) continue;
      const Vec<T, width> m = f.mask.template factors<T, width>(row * n + i);
#pragma unroll
      for (int j = 0; j < width; ++j) dx.x[j] *= m.x[j];
      store_as(f.dbranch.data + row * f.dbranch.stride + i, dx);
    }
  }
  if (!f.partial_weight) return;
  T* shared = dynamic_shared<T>();  // [warps, n], for dw and then for db
#pragma unroll
  for (int which = 0; which < 2; ++which) {
#pragma unroll
    for (int k = 0; k < packs; ++k) {
      const int i = static_cast<int>(k * 32 + threadIdx.x) * width;
      // store_vec is for global memory
      if (i < n) *reinterpret_cast<Vec<T, width>*>(shared + threadIdx.y * n + i) = which == 0 ? dw[k] : db[k];
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.y * 32 + threadIdx.x); i < n; i += 32 * norm_warps) {
      T sum = 0;
      for (unsigned warp = 0; warp < norm_warps; ++warp) sum += shared[warp * n + i];
      f.partial_weight[(2 * static_cast<int64_t>(blockIdx.x) + which) * n + i] = sum;
    }
    __syncthreads();
  }
}

// --- a block a row ---

template <class S>
__global__ void norm_forward_wide(NormForwardRows<S> f) {  // a block a row
  using T = Arithmetic<S>;
  const int64_t row = blockIdx.x, n = f.y.cols;
  const S* x = f.x.data + row * f.x.stride;
  if (f.branch.data) {
    S* sum = f.sum.data + row * f.sum.stride;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
      const T m = f.mask.threshold ? f.mask.template factor<T>(row * n + i) : T(1);
      sum[i] = (f.x.data ? T(x[i]) : T(0)) + f.branch.data[row * f.branch.stride + i] * m;
    }
    x = sum;
  }
  T mean = 0, squares = 0;
  if (f.centred) {
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) mean += x[i];
    mean = block_sum(mean) / static_cast<T>(n);
  }
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) squares += (x[i] - mean) * (x[i] - mean);
  const T rstd = T(1) / sqrt(block_sum(squares) / static_cast<T>(n) + f.epsilon);
  if (threadIdx.x == 0) {
    if (f.centred) f.mean[row] = mean;
    f.rstd[row] = rstd;
  }
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x)
    f.y.data[row * f.y.stride + i] = (x[i] - mean) * rstd * f.weight[i] + (f.bias ? f.bias[i] : T(0));
}

template <class S>
__global__ void norm_backward_wide(NormBackwardRows<S> f) {  // a block a row: dx and dbranch
  using T = Arithmetic<S>;
  const int64_t row = blockIdx.x, n = f.dy.cols;
  const S* x = f.x.data + row * f.x.stride;
  const S* dy = f.dy.data + row * f.dy.stride;
  const T mean = f.centred ? f.mean[row] : T(0), rstd = f.rstd[row];
  T sum_g = 0, sum_gx = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    const T g = dy[i] * f.weight[i];
    sum_g += g;
    sum_gx += g * ((x[i] - mean) * rstd);
  }
  sum_g = f.centred ? block_sum(sum_g) / static_cast<T>(n) : T(0);
  sum_gx = block_sum(sum_gx) / static_cast<T>(n);
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    const T g = rstd * (dy[i] * f.weight[i] - sum_g - (x[i] - mean) * rstd * sum_gx);
    const T dx = g + (f.dsum.data ? T(f.dsum.data[row * f.dsum.stride + i]) : T(0));
    f.dx.data[row * f.dx.stride + i] = dx;
    if (f.dbranch.data)
      f.dbranch.data[row * f.dbranch.stride + i] = dx * f.mask.template factor<T>(row * n + i);
  }
}

template <class S>
struct NormPartials {  // a thread a (block of rows, column)
  NormBackwardRows<S> f;
  ET_HD void operator()(int64_t at) const {
    using T = Arithmetic<S>;
    const int64_t column = at % f.dy.cols, begin = at / f.dy.cols * f.rows_per_block;
    const int64_t end = begin + f.rows_per_block < f.dy.rows ? begin + f.rows_per_block : f.dy.rows;
    T dw = 0, db = 0;
    for (int64_t row = begin; row < end; ++row) {
      const T dy = f.dy.data[row * f.dy.stride + column];
      const T mean = f.centred ? f.mean[row] : T(0);
      dw += dy * ((f.x.data[row * f.x.stride + column] - mean) * f.rstd[row]);
      db += dy;
    }
    const int64_t block = at / f.dy.cols;
    f.partial_weight[at + block * f.dy.cols] = dw;
    f.partial_weight[at + (block + 1) * f.dy.cols] = db;
  }
};

template <class S>
bool on_packs(const Rows<S>& x) {
  constexpr int width = vec_width<Arithmetic<S>>;
  return !x.data || (reinterpret_cast<uintptr_t>(x.data) % (width * sizeof(S)) == 0 && x.stride % width == 0);
}

/// run.operator()<packs>() for rows that a warp holds; false: they are too long or not whole packs.
template <class T, class Run>
bool with_packs(int64_t width, bool aligned, Run&& run) {
  constexpr int64_t lane = 32 * vec_width<T>;
  if (!aligned || width % vec_width<T> != 0 || width > 8 * lane) return false;
  if (width <= lane)
    run.template operator()<1>();
  else if (width <= 2 * lane)
    run.template operator()<2>();
  else if (width <= 4 * lane)
    run.template operator()<4>();
  else
    run.template operator()<8>();
  return true;
}

template <class S>
void norm_forward_cuda(const Context& ctx, const NormForwardRows<S>& f) {
  const bool aligned = on_packs(f.x) && on_packs(f.y) && on_packs(f.branch) && on_packs(f.sum) &&
                       aligned_for_vec(f.weight) && (!f.bias || aligned_for_vec(f.bias));
  const bool done = with_packs<Arithmetic<S>>(f.y.cols, aligned, [&]<int packs>() {
    launch(ctx, norm_forward_warps<packs, S>, blocks_for(f.y.rows, norm_warps), dim3(32, norm_warps), 0, f);
  });
  if (!done) launch(ctx, norm_forward_wide<S>, static_cast<unsigned>(f.y.rows), 128, 0, f);
}

/// The residual form with a gate; false, and nothing done: rows that a warp cannot hold, or no whole packs.
template <class S>
bool norm_forward_gated(const Context& ctx, const NormForwardRows<S>& f) {
  const bool aligned = on_packs(f.x) && on_packs(f.y) && on_packs(f.branch) && on_packs(f.gate) &&
                       on_packs(f.sum) && aligned_for_vec(f.weight) && (!f.bias || aligned_for_vec(f.bias));
  return with_packs<Arithmetic<S>>(f.y.cols, aligned, [&]<int packs>() {
    if (f.y.rows > 0)
      launch(ctx, norm_forward_warps<packs, S, true>, blocks_for(f.y.rows, norm_warps), dim3(32, norm_warps),
             0, f);
  });
}

/// dweight and dbias from sums [2, D], on top of what was sent; null: not wanted, nothing sent.
template <class T>
struct NormSink {
  T *dweight, *dbias;
  const T *weight_sent, *bias_sent;
  int64_t width;
  ET_HD void put(int64_t at, T value) const {
    const bool first = at < width;
    const int64_t i = first ? at : at - width;
    const T* sent = first ? weight_sent : bias_sent;
    if (T* to = first ? dweight : dbias) to[i] = sent ? sent[i] + value : value;
  }
};

/// partial_weight: [blocks, 2, D].
template <class S>
void norm_backward_cuda(const Context& ctx, const NormBackwardRows<S>& f, int64_t blocks,
                        const NormSink<Arithmetic<S>>& sink) {
  using T = Arithmetic<S>;
  const int64_t n = f.dy.cols;
  if (blocks > 0) {
    const bool aligned = on_packs(f.x) && on_packs(f.dy) && on_packs(f.dsum) && on_packs(f.dx) &&
                         on_packs(f.dbranch) && aligned_for_vec(f.weight);
    const bool done = with_packs<T>(n, aligned, [&]<int packs>() {
      launch(ctx, norm_backward_warps<packs, S>, static_cast<unsigned>(blocks), dim3(32, norm_warps),
             f.partial_weight ? norm_warps * static_cast<size_t>(n) * sizeof(T) : 0, f);
    });
    if (!done && f.dx.data) launch(ctx, norm_backward_wide<S>, static_cast<unsigned>(f.dy.rows), 128, 0, f);
    if (!done && f.partial_weight) for_each_index(ctx, blocks * n, NormPartials<S>{f});
  }
  if (f.partial_weight) sum_rows(ctx, f.partial_weight, 1, blocks, 2 * n, sink);
}
#endif

}  // namespace eigentrace::kernels
