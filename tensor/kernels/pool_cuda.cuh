#pragma once
// What both bodies of pool.cu share, and its CUDA bodies: a block pools 64 steps of a tile of columns, a
// second launch the blocks of a sequence in order, so that x is read once by many threads however few
// sequences there are. How many steps count is read from the device. Bytes an element, float32: 4 forward, 4
// backward; CIFAR 105 MB: 25 µs each.
#include <algorithm>

#include "tensor/dispatch.h"
#include "tensor/kernels.h"
#include "tensor/vec.h"

namespace eigentrace::kernels {

struct PoolSteps {
  const int32_t *lengths, *valid_time;
  int64_t time;
  ET_HD int64_t operator()(int64_t b) const {
    int64_t n = time;
    if (lengths && lengths[b] < n) n = lengths[b];
    if (valid_time && valid_time[0] < n) n = valid_time[0];
    return n > 0 ? n : 0;
  }
};

#ifdef EIGENTRACE_WITH_CUDA
constexpr int64_t pool_steps = 64;  // of a block

/// The sum, or the first maximum and where it is; at: −1 before any.
template <bool is_max, class T>
struct Pooled {
  T value = 0;
  int32_t at = -1;
  __device__ __forceinline__ void add(T x, int32_t t) {
    if (!is_max) {
      value += x;
    } else if (t >= 0) {
      const bool nan = x != x, held_nan = value != value;
      const bool larger = nan ? !held_nan : !held_nan && x > value;  // a NaN is larger than everything
      const bool equal = nan == held_nan && (nan || x == value);
      if (at < 0 || larger || (equal && t < at)) value = x, at = t;
    }
  }
};

template <class T>
struct PoolOperands {
  const T* x;
  int64_t batch_stride, time_stride, width;
  PoolSteps steps;
  T* values;        ///< [B, chunks, D]
  int32_t* places;  ///< likewise, for max
  int64_t chunks;
};

template <bool is_max, int width, class T>
__global__ void __launch_bounds__(256) pool_chunks_kernel(const __grid_constant__ PoolOperands<T> p) {
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x) * width, b = blockIdx.z;
  const int64_t begin = blockIdx.y * pool_steps, n = p.steps(b);
  const int64_t end = begin + pool_steps < n ? begin + pool_steps : n;
  const bool inside = column < p.width;
  Pooled<is_max, T> held[width];
  if (inside) {
#pragma unroll 4
    for (int64_t t = begin + threadIdx.y; t < end; t += 8) {
      const Vec<T, width> row = load_vec<width>(p.x + b * p.batch_stride + t * p.time_stride + column);
#pragma unroll
      for (int i = 0; i < width; ++i) held[i].add(row.x[i], static_cast<int32_t>(t));
    }
  }
  Pooled<is_max, T>* shared = dynamic_shared<Pooled<is_max, T>>();
#pragma unroll
  for (int i = 0; i < width; ++i) shared[(threadIdx.y * 32 + threadIdx.x) * width + i] = held[i];
  __syncthreads();
  if (threadIdx.y > 0 || !inside) return;
#pragma unroll
  for (int i = 0; i < width; ++i) {
    for (int y = 1; y < 8; ++y) {
      const Pooled<is_max, T> other = shared[(y * 32 + threadIdx.x) * width + i];
      held[i].add(other.value, other.at);
    }
    const int64_t to = (b * p.chunks + blockIdx.y) * p.width + column + i;
    p.values[to] = held[i].value;
    if (is_max) p.places[to] = held[i].at;
  }
}

template <bool is_max, class T>
__global__ void pool_merge_kernel(const __grid_constant__ PoolOperands<T> p, bool mean, T* y,
                                  int32_t* argmax) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, b = blockIdx.y;
  if (column >= p.width) return;
  Pooled<is_max, T> all;
#pragma unroll 4
  for (int64_t k = 0; k < p.chunks; ++k) {
    const int64_t from = (b * p.chunks + k) * p.width + column;
    all.add(p.values[from], is_max ? p.places[from] : 0);
  }
  const int64_t n = p.steps(b);
  if (mean && n > 0) all.value /= static_cast<T>(n);
  y[b * p.width + column] = all.value;
  if (is_max) argmax[b * p.width + column] = all.at;
}

template <class T>
__global__ void pool_pick_kernel(const __grid_constant__ PoolOperands<T> p, bool last, T* y) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, b = blockIdx.y;
  if (column >= p.width) return;
  const int64_t n = p.steps(b), t = last ? n - 1 : 0;
  y[b * p.width + column] = n > 0 ? p.x[b * p.batch_stride + t * p.time_stride + column] : T(0);
}

inline void pool_cuda(Context& ctx, Pool how, const Tensor& x, const PoolSteps& steps, Tensor& y,
                      Tensor& argmax) {
  const int64_t batch = x.dim(0), width = x.dim(2), chunks = (x.dim(1) + pool_steps - 1) / pool_steps;
  const bool is_max = how == Pool::max, pick = how == Pool::first || how == Pool::last;
  Tensor values, places;
  if (!pick) values = ctx.empty({batch, chunks, width}, x.dtype());
  if (is_max) places = ctx.empty({batch, chunks, width}, DType::i32);
  if (batch * width == 0) return;
  dispatch_floating(ctx, "pool", x.dtype(), [&]<class T>() {
    const PoolOperands<T> p{x.data<T>(),
                            x.stride(0),
                            x.stride(1),
                            width,
                            steps,
                            pick ? nullptr : values.data<T>(),
                            is_max ? places.data<int32_t>() : nullptr,
                            chunks};
    const dim3 merge(blocks_for(width, 128), static_cast<unsigned>(batch));
    if (pick) return launch(ctx, pool_pick_kernel<T>, merge, 128, 0, p, how == Pool::last, y.data<T>());
    const auto start = [&]<bool most, int w>() {
      const dim3 grid(blocks_for(width, 32 * w), static_cast<unsigned>(chunks), static_cast<unsigned>(batch));
      if (chunks > 0)
        launch(ctx, pool_chunks_kernel<most, w, T>, grid, dim3(32, 8), 256 * w * sizeof(Pooled<most, T>), p);
      launch(ctx, pool_merge_kernel<most, T>, merge, 128, 0, p, how == Pool::mean, y.data<T>(),
             most ? argmax.data<int32_t>() : nullptr);
    };
    constexpr int wide = vec_width<T>;
    const bool aligned = rows_are_aligned<T>(x);
    if (is_max)
      aligned ? start.template operator()<true, wide>() : start.template operator()<true, 1>();
    else
      aligned ? start.template operator()<false, wide>() : start.template operator()<false, 1>();
  });
}

/// A thread a pack of columns, over 8 steps.
template <int width, class T>
__global__ void __launch_bounds__(256)
    pool_backward_kernel(Pool how, Rows<T> dy, PoolSteps steps, const int32_t* argmax, T* dx,
                         int64_t batch_stride, int64_t time_stride) {
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x) * width, b = blockIdx.z;
  if (column >= dy.cols) return;
  const int64_t n = steps(b), begin = (static_cast<int64_t>(blockIdx.y) * 8 + threadIdx.y) * 8;
  Vec<T, width> g = load_vec<width>(dy.data + b * dy.stride + column);
  int32_t at[width];
#pragma unroll
  for (int i = 0; i < width; ++i) {
    if (how == Pool::mean) g.x[i] /= static_cast<T>(n > 0 ? n : 1);
    at[i] = how == Pool::max ? argmax[b * dy.cols + column + i] : 0;
  }
#pragma unroll
  for (int64_t t = begin; t < begin + 8; ++t) {
    if (t >= steps.time) return;
    bool chosen = t < n;
    if (how == Pool::first) chosen = t == 0 && n > 0;
    if (how == Pool::last) chosen = t == n - 1;
    Vec<T, width> v;
#pragma unroll
    for (int i = 0; i < width; ++i) v.x[i] = (how == Pool::max ? at[i] == t : chosen) ? g.x[i] : T(0);
    store_vec(dx + b * batch_stride + t * time_stride + column, v);
  }
}

template <class T>
void pool_backward_cuda(const Context& ctx, Pool how, const PoolSteps& steps, const int32_t* argmax,
                        const Rows<T>& dy, const Tensor& dx) {
  if (dx.numel() == 0) return;
  const auto start = [&]<int width>() {
    const dim3 grid(blocks_for(dy.cols, 32 * width), blocks_for(steps.time, 64),
                    static_cast<unsigned>(dx.dim(0)));
    launch(ctx, pool_backward_kernel<width, T>, grid, dim3(32, 8), 0, how, dy, steps, argmax, dx.data<T>(),
           dx.stride(0), dx.stride(1));
  };
  if (rows_are_aligned<T>(dx) && dy.stride % vec_width<T> == 0 && aligned_for_vec(dy.data))
    start.template operator()<vec_width<T>>();
  else
    start.template operator()<1>();
}
#endif

}  // namespace eigentrace::kernels
