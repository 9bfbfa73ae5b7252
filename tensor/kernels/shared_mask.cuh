#pragma once
// y = m f(x₀, …) over [B, T, D], one draw of dropout's mask for all T of (b, d): a thread draws for a pack of
// channels and takes it over several steps of time, so that a draw costs nothing. For .cu files only.
#include <algorithm>
#include <array>

#include "tensor/dispatch.h"
#include "tensor/dropout_stream.h"
#include "tensor/launch.h"
#include "tensor/vec.h"

namespace eigentrace::kernels {
namespace {

constexpr int shared_mask_steps = 16, shared_mask_threads = 128;

template <class T>
struct BatchedRows {
  T* data;
  int64_t batch, row;  // strides
};

template <class T, int inputs>
struct SharedMask {
  BatchedRows<const T> x[inputs];
  BatchedRows<T> y;
  int64_t time, width;
  DropoutStream mask;
};

template <int width, class T, int inputs, class F>
__global__ void __launch_bounds__(shared_mask_threads) shared_mask_kernel(SharedMask<T, inputs> o, F f) {
  const int64_t d = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * width, b = blockIdx.z;
  if (d >= o.width) return;
  const Vec<T, width> m = o.mask.template factors<T, width>(b * o.width + d);
  const int64_t begin = (static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y) * shared_mask_steps;
  const int64_t end = begin + shared_mask_steps < o.time ? begin + shared_mask_steps : o.time;
#pragma unroll 4
  for (int64_t t = begin; t < end; ++t) {
    Vec<T, width> x[inputs], y;
#pragma unroll
    for (int k = 0; k < inputs; ++k)
      x[k] = load_vec<width>(o.x[k].data + b * o.x[k].batch + t * o.x[k].row + d);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      if constexpr (inputs == 1)
        y.x[i] = m.x[i] * f(x[0].x[i]);
      else
        y.x[i] = m.x[i] * f(x[0].x[i], x[1].x[i]);
    }
    store_vec(o.y.data + b * o.y.batch + t * o.y.row + d, y);
  }
}

/// False, and nothing done: a last axis is not dense.
template <class T, size_t inputs, class F>
bool map_shared_mask(const Context& ctx, const F& f, const std::array<Tensor, inputs>& x, const Tensor& y,
                     const DropoutStream& mask) {
  constexpr int wide = vec_width<T>;
  constexpr int n = static_cast<int>(inputs);
  const auto dense = [](const Tensor& t) { return t.dim(2) == 1 || t.stride(2) == 1; };
  bool aligned = rows_are_aligned<T>(y);
  SharedMask<T, n> o{{}, {y.data<T>(), y.stride(0), y.stride(1)}, y.dim(1), y.dim(2), mask};
  if (!dense(y)) return false;
  for (size_t k = 0; k < inputs; ++k) {
    if (!dense(x[k])) return false;
    o.x[k] = {x[k].template data<T>(), x[k].stride(0), x[k].stride(1)};
    aligned = aligned && rows_are_aligned<T>(x[k]);
  }
  const auto start = [&]<int width>() {
    const int64_t across = std::min<int64_t>((o.width + width - 1) / width, shared_mask_threads);
    const int64_t down = shared_mask_threads / across;
    const dim3 grid(blocks_for(o.width, across * width), blocks_for(o.time, down * shared_mask_steps),
                    static_cast<unsigned>(y.dim(0)));
    launch(ctx, shared_mask_kernel<width, T, n, F>, grid,
           dim3(static_cast<unsigned>(across), static_cast<unsigned>(down)), 0, o, f);
  };
  if (y.numel() == 0) return true;
  if (aligned)
    start.template operator()<wide>();
  else
    start.template operator()<1>();
  return true;
}

}  // namespace
}  // namespace eigentrace::kernels
