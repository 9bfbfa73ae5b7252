// Pooling over time: y[b] from x[b, 0 … n_b − 1], n_b = min(lengths[b], valid_time, T).
//   mean: dx = dy / n_b, sum: dy, max: dy at the first maximum, first and last: dy at one step; else 0.
// The CUDA bodies are in pool_cuda.cuh.
#include <algorithm>

#include "tensor/dispatch.h"
#include "tensor/float32_copies.h"
#include "tensor/kernels.h"
#include "tensor/kernels/pool_cuda.cuh"

namespace eigentrace::kernels {
namespace {

template <class T>
struct Forward {
  Pool how;
  const T* x;
  int64_t batch_stride, time_stride;
  PoolSteps steps;
  T* y;
  int32_t* argmax;
  int64_t width;
};

/// CPU: one step of each sequence.
template <class T>
void pick_cpu(const Forward<T>& f, int64_t batch) {
  parallel_rows(batch, [&](int64_t b) {
    const int64_t n = f.steps(b), t = f.how == Pool::first ? 0 : n - 1;
    const T* row = f.x + b * f.batch_stride + t * f.time_stride;
    for (int64_t i = 0; i < f.width; ++i) f.y[b * f.width + i] = n > 0 ? row[i] : T(0);
  });
}

/// CPU: the sums of a strip of columns, down the time axis.
template <class T>
void sum_cpu(const Forward<T>& f, int64_t batch) {
  constexpr int64_t strip = 64;
  const int64_t strips = (f.width + strip - 1) / strip;
  parallel_rows(batch * strips, [&](int64_t item) {
    const int64_t b = item / strips, column = item % strips * strip, n = f.steps(b);
    const int64_t columns = std::min(strip, f.width - column);
    T sums[strip] = {};
    for (int64_t t = 0; t < n; ++t) {
      const T* row = f.x + b * f.batch_stride + t * f.time_stride + column;
#pragma omp simd
      for (int64_t i = 0; i < columns; ++i) sums[i] += row[i];
    }
    const T divisor = f.how == Pool::mean && n > 0 ? static_cast<T>(n) : T(1);
    for (int64_t i = 0; i < columns; ++i) f.y[b * f.width + column + i] = sums[i] / divisor;
  });
}

/// CPU: maxima of a strip of columns and where they are; a NaN is larger than everything and stays.
template <class T>
void max_cpu(const Forward<T>& f, int64_t batch) {
  constexpr int64_t strip = 64;
  const int64_t strips = (f.width + strip - 1) / strip;
  parallel_rows(batch * strips, [&](int64_t item) {
    const int64_t b = item / strips, column = item % strips * strip, n = f.steps(b);
    const int64_t columns = std::min(strip, f.width - column);
    T values[strip] = {};
    int32_t at[strip];
    std::fill_n(at, strip, n > 0 ? 0 : -1);
    const T* first = f.x + b * f.batch_stride + column;
    if (n > 0) std::copy_n(first, columns, values);
    for (int64_t t = 1; t < n; ++t) {
      const T* row = first + t * f.time_stride;
#pragma omp simd
      for (int64_t i = 0; i < columns; ++i) {
        const bool larger = row[i] > values[i] || (row[i] != row[i] && values[i] == values[i]);
        at[i] = larger ? static_cast<int32_t>(t) : at[i];
        values[i] = larger ? row[i] : values[i];
      }
    }
    std::copy_n(values, columns, f.y + b * f.width + column);
    std::copy_n(at, columns, f.argmax + b * f.width + column);
  });
}

/// CPU: mean, sum, first and last backward: each step gets dy over a divisor, or nothing.
template <class T>
void backward_cpu(Pool how, const Rows<T>& dy, const PoolSteps& steps, T* dx, int64_t batch,
                  int64_t batch_stride, int64_t time_stride) {
  parallel_rows(batch * steps.time, [&](int64_t row) {
    const int64_t b = row / steps.time, t = row % steps.time, n = steps(b);
    const bool chosen = how == Pool::first ? t == 0 && n > 0 : how == Pool::last ? t == n - 1 : t < n;
    const T divisor = how == Pool::mean && n > 0 ? static_cast<T>(n) : T(1);
    const T* g = dy.data + b * dy.stride;
    T* to = dx + b * batch_stride + t * time_stride;
    if (!chosen) {
      std::fill_n(to, dy.cols, T(0));
    } else {
#pragma omp simd
      for (int64_t i = 0; i < dy.cols; ++i) to[i] = g[i] / divisor;
    }
  });
}

/// CPU: max backward.
template <class T>
void max_backward_cpu(const Rows<T>& dy, const int32_t* argmax, T* dx, int64_t time, int64_t batch_stride,
                      int64_t time_stride) {
  parallel_rows(dy.rows * time, [&](int64_t row) {
    const int64_t b = row / time, t = row % time;
    const T* g = dy.data + b * dy.stride;
    const int32_t* at = argmax + b * dy.cols;
    T* to = dx + b * batch_stride + t * time_stride;
#pragma omp simd
    for (int64_t i = 0; i < dy.cols; ++i) to[i] = at[i] == t ? g[i] : T(0);
  });
}

PoolSteps steps_of(const Tensor& x, const Tensor& lengths, const Tensor& valid_time) {
  if (x.rank() != 3 || (x.dim(2) != 1 && x.stride(2) != 1))
    fail("pool: x [B, T, D] with a dense last axis expected, found " + to_string(x));
  if (lengths.defined() && lengths.numel() != x.dim(0))
    fail("pool: lengths: i32 [" + std::to_string(x.dim(0)) + "] expected, found " + to_string(lengths));
  return {lengths.defined() ? lengths.data<int32_t>() : nullptr,
          valid_time.defined() ? valid_time.data<int32_t>() : nullptr, x.dim(1)};
}

}  // namespace

void pool(Context& ctx, Pool how, const Tensor& x, const Tensor& lengths, const Tensor& valid_time, Tensor& y,
          Tensor& argmax) {
  if (in_float32(ctx, pool, how, x, lengths, valid_time, y, argmax)) return;
  const PoolSteps steps = steps_of(x, lengths, valid_time);
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda()) return pool_cuda(ctx, how, x, steps, y, argmax);
#endif
  dispatch_floating(ctx, "pool", x.dtype(), [&]<class T>() {
    const Forward<T> f{how,
                       x.data<T>(),
                       x.stride(0),
                       x.stride(1),
                       steps,
                       y.data<T>(),
                       how == Pool::max ? argmax.data<int32_t>() : nullptr,
                       x.dim(2)};
    require_cpu(ctx, "pool");
    if (how == Pool::mean || how == Pool::sum) return sum_cpu(f, x.dim(0));
    if (how == Pool::max) return max_cpu(f, x.dim(0));
    pick_cpu(f, x.dim(0));
  });
}

void pool_backward(Context& ctx, Pool how, const Tensor& lengths, const Tensor& valid_time,
                   const Tensor& argmax, const Tensor& dy, Tensor& dx) {
  if (in_float32(ctx, pool_backward, how, lengths, valid_time, argmax, dy, dx)) return;
  const PoolSteps steps = steps_of(dx, lengths, valid_time);
  dispatch_floating(ctx, "pool_backward", dx.dtype(), [&]<class T>() {
    const Rows<T> g = rows_of<T>(dy, "pool_backward: dy");
#ifdef EIGENTRACE_WITH_CUDA
    if (ctx.device().is_cuda())
      return pool_backward_cuda(ctx, how, steps, how == Pool::max ? argmax.data<int32_t>() : nullptr, g, dx);
#endif
    require_cpu(ctx, "pool_backward");
    if (how == Pool::max)
      max_backward_cpu(g, argmax.data<int32_t>(), dx.data<T>(), dx.dim(1), dx.stride(0), dx.stride(1));
    else
      backward_cpu(how, g, steps, dx.data<T>(), dx.dim(0), dx.stride(0), dx.stride(1));
  });
}

}  // namespace eigentrace::kernels
