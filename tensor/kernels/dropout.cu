// y = x · m / (1 − p), m from tensor/dropout_stream.h. x as [B, T, D]: element (b, t, d) reads mask element
// (b T + t) D + d, or b D + d where one draw is shared over time. The backward pass is the same map of dy.
#include "tensor/dropout_stream.h"

#include <algorithm>

#include "tensor/elements.h"
#include "tensor/float32_copies.h"
#include "tensor/kernels.h"
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/kernels/element_mask.cuh"
#include "tensor/kernels/shared_mask.cuh"
#endif

namespace eigentrace::kernels {
namespace {

#ifdef EIGENTRACE_WITH_CUDA
struct PerElement {
  DropoutStream mask;
  template <class T, int width>
  ET_HD void pack(int64_t element, const Vec<T, width> (&x)[1], Vec<T, width> (&y)[1]) const {
    const Vec<T, width> m = mask.template factors<T, width>(element);
#pragma unroll
    for (int i = 0; i < width; ++i) y[0].x[i] = x[0].x[i] * m.x[i];
  }
};

struct Same {
  template <class T>
  ET_HD T operator()(T x) const {
    return x;
  }
};
#endif

/// CPU: blocks of 1,024 elements along the last collapsed axis, the factors of a block made at once.
template <class T>
void dropout_cpu(const T* x, T* y, const StridedIndex& index, const DropoutStream& mask) {
  constexpr int64_t block = 1024;
  const int last = index.rank - 1;
  const int64_t columns = index.rank == 0 ? 1 : index.size[last], rows = index.numel() / columns;
  const int64_t pieces = (columns + block - 1) / block, group = columns < block ? block / columns : 1;
  const int64_t step_x = index.rank == 0 ? 1 : index.stride[0][last];
  const int64_t step_y = index.rank == 0 ? 1 : index.stride[1][last];
  parallel_rows((rows + group - 1) / group * pieces, [&](int64_t item) {
    T buffer[block + 16];
    const int64_t first = item / pieces * group, end = std::min(first + group, rows);
    const int64_t begin = item % pieces * block, n = std::min(block, columns - begin);
    const int64_t start = first * columns + begin;
    const T* factors = dropout_factors(mask, start, group == 1 ? n : (end - first) * columns, buffer);
    for (int64_t row = first; row < end; ++row, factors += n) {
      const T* from = x + index.offset(0, row * columns + begin);
      T* to = y + index.offset(1, row * columns + begin);
      if (step_x == 1 && step_y == 1) {
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) to[i] = from[i] * factors[i];
      } else {
        for (int64_t i = 0; i < n; ++i) to[i * step_y] = from[i * step_x] * factors[i];
      }
    }
  });
}

/// CPU, one draw for all T of (b, d): the factors of a piece of a row, then down the time axis.
template <class T>
void dropout_shared_cpu(const Tensor& x, const Tensor& y, const DropoutStream& mask) {
  constexpr int64_t block = 256;
  const int64_t width = x.dim(2), time = x.dim(1), pieces = (width + block - 1) / block;
  const T* px = x.data<T>();
  T* py = y.data<T>();
  parallel_rows(x.dim(0) * pieces, [&](int64_t item) {
    T buffer[block + 16];
    const int64_t b = item / pieces, begin = item % pieces * block, n = std::min(block, width - begin);
    const T* factors = dropout_factors(mask, b * width + begin, n, buffer);
    const int64_t step_x = x.stride(2), step_y = y.stride(2);
    for (int64_t t = 0; t < time; ++t) {
      const T* from = px + b * x.stride(0) + t * x.stride(1) + begin * step_x;
      T* to = py + b * y.stride(0) + t * y.stride(1) + begin * step_y;
      if (step_x == 1 && step_y == 1) {
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) to[i] = from[i] * factors[i];
      } else {
        for (int64_t i = 0; i < n; ++i) to[i * step_y] = from[i * step_x] * factors[i];
      }
    }
  });
}

}  // namespace

void dropout(Context& ctx, const Tensor& x, double p, uint32_t op, bool shared_over_time, Tensor& y) {
  if (shared_over_time && in_float32(ctx, dropout, x, p, op, shared_over_time, y)) return;
  if (!(x.shape() == y.shape())) fail("dropout: y is " + to_string(y) + ", x is " + to_string(x));
  if (shared_over_time && x.rank() != 3)
    fail("dropout: a mask shared over time needs x [B, T, D], found " + to_string(x));
  const DropoutStream mask = dropout_stream(ctx, p, op);
  if (x.numel() == 0) return;
  dispatch_stored(ctx, "dropout", x.dtype(), [&]<class T>() {
#ifdef EIGENTRACE_WITH_CUDA
    if (ctx.device().is_cuda()) {
      if constexpr (!std::is_same_v<T, BFloat16>)
        if (shared_over_time) {
          if (!map_shared_mask<T>(ctx, Same{}, std::array{x}, y, mask))
            fail("dropout: a mask shared over time needs a dense last axis on a GPU, found " + to_string(x));
          return;
        }
      if constexpr (std::is_same_v<T, float>)
        if (map_element_mask(ctx, Same{}, std::array{x}, y, mask)) return;
      return map_elements_cuda<T>(ctx, PerElement{mask}, std::array{x}, std::array{y});
    }
#endif
    if constexpr (!std::is_same_v<T, BFloat16>) {
      if (shared_over_time)
        dropout_shared_cpu<T>(x, y, mask);
      else
        dropout_cpu<T>(x.data<T>(), y.data<T>(), strided_index(x, y, y), mask);
    }
  });
}

}  // namespace eigentrace::kernels
