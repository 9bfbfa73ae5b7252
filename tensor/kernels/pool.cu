// Pooling over time: y[b] from x[b, 0 … n_b − 1], n_b = min(lengths[b], valid_time, T).
//   mean: dx = dy / n_b, sum: dy, max: dy at the first maximum, first and last: dy at one step; else 0.
#include <algorithm>

#include "tensor/dispatch.h"
#include "tensor/kernels.h"

namespace eigentrace::kernels {
namespace {

struct Steps {
  const int32_t *lengths, *valid_time;
  int64_t time;
  ET_HD int64_t operator()(int64_t b) const {
    int64_t n = time;
    if (lengths && lengths[b] < n) n = lengths[b];
    if (valid_time && valid_time[0] < n) n = valid_time[0];
    return n > 0 ? n : 0;
  }
};

template <class T>
struct Forward {
  Pool how;
  const T* x;
  int64_t batch_stride, time_stride;
  Steps steps;
  T* y;
  int32_t* argmax;
  int64_t width;
  ET_HD void operator()(int64_t b, int64_t i) const {  // CUDA: a thread a (b, d); the CPU: see below
    const T* column = x + b * batch_stride + i;
    const int64_t n = steps(b);
    T value = 0;
    int32_t at = -1;
    if (how == Pool::first || how == Pool::last) {
      if (n > 0) value = column[how == Pool::first ? 0 : (n - 1) * time_stride];
    } else if (how == Pool::max) {
      for (int64_t t = 0; t < n; ++t) {
        const T candidate = column[t * time_stride];
        if (at < 0 || candidate > value || candidate != candidate) {
          value = candidate, at = static_cast<int32_t>(t);
          if (candidate != candidate) break;  // NaN stays
        }
      }
      argmax[b * width + i] = at;
    } else {
      for (int64_t t = 0; t < n; ++t) value += column[t * time_stride];
      if (how == Pool::mean && n > 0) value /= static_cast<T>(n);
    }
    y[b * width + i] = value;
  }
};

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
void backward_cpu(Pool how, const Rows<T>& dy, const Steps& steps, T* dx, int64_t batch, int64_t batch_stride,
                  int64_t time_stride) {
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

template <class T>
struct BackwardOf {
  Pool how;
  Rows<T> dy;
  Steps steps;
  const int32_t* argmax;
  T* dx;
  int64_t batch_stride, time_stride;
  ET_HD void operator()(int64_t row, int64_t i) const {
    const int64_t b = row / steps.time, t = row % steps.time, n = steps(b);
    bool chosen = t < n;
    if (how == Pool::first) chosen = t == 0 && n > 0;
    if (how == Pool::last) chosen = t == n - 1;
    if (how == Pool::max) chosen = argmax[b * dy.cols + i] == t;
    const T g = dy.data[b * dy.stride + i];
    const T divisor = how == Pool::mean ? static_cast<T>(n > 0 ? n : 1) : T(1);
    dx[b * batch_stride + t * time_stride + i] = chosen ? g / divisor : T(0);
  }
};

Steps steps_of(const Tensor& x, const Tensor& lengths, const Tensor& valid_time) {
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
  const Steps steps = steps_of(x, lengths, valid_time);
  dispatch_floating(ctx, "pool", x.dtype(), [&]<class T>() {
    const Forward<T> f{how,
                       x.data<T>(),
                       x.stride(0),
                       x.stride(1),
                       steps,
                       y.data<T>(),
                       how == Pool::max ? argmax.data<int32_t>() : nullptr,
                       x.dim(2)};
    if (!ctx.device().is_cuda() && (how == Pool::mean || how == Pool::sum)) return sum_cpu(f, x.dim(0));
    if (!ctx.device().is_cuda() && how == Pool::max) return max_cpu(f, x.dim(0));
    for_each_in_rows(ctx, x.dim(0), x.dim(2), f);
  });
}

void pool_backward(Context& ctx, Pool how, const Tensor& lengths, const Tensor& valid_time,
                   const Tensor& argmax, const Tensor& dy, Tensor& dx) {
  const Steps steps = steps_of(dx, lengths, valid_time);
  dispatch_floating(ctx, "pool_backward", dx.dtype(), [&]<class T>() {
    if (!ctx.device().is_cuda() && how != Pool::max)
      return backward_cpu(how, rows_of<T>(dy, "pool_backward: dy"), steps, dx.data<T>(), dx.dim(0),
                          dx.stride(0), dx.stride(1));
    for_each_in_rows(ctx, dx.dim(0) * dx.dim(1), dx.dim(2),
                     BackwardOf<T>{how, rows_of<T>(dy, "pool_backward: dy"), steps,
                                   how == Pool::max ? argmax.data<int32_t>() : nullptr, dx.data<T>(),
                                   dx.stride(0), dx.stride(1)});
  });
}

}  // namespace eigentrace::kernels
