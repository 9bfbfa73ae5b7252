#pragma once
// Sums down the columns of [outer, reduced, inner] on CUDA, in a fixed order that depends on the shape alone:
// a block sums a chunk of rows for a tile of columns, each thread every `depth`-th row, then the threads of a
// column pairwise; if there are several chunks a second launch sums theirs. One read of x. For kernels/*.cu
// only.
#ifdef EIGENTRACE_WITH_CUDA
#include <algorithm>
#include <cstdint>

#include "tensor/dispatch.h"
#include "tensor/vec.h"

namespace eigentrace {

struct ColumnPlan {
  int64_t outer, reduced, inner;
  int64_t chunk, chunks;  ///< rows of a block
};

/// Where sums go: `put(at, value)`, at = (outer·chunks + chunk)·inner + column.
template <class T>
struct DenseSink {
  T* to;
  ET_HD void put(int64_t at, T value) const { to[at] = value; }
};
/// The first `cut` columns to one place and the others to another; null: not wanted.
template <class T>
struct SplitSink {
  T *first, *second;
  int64_t cut;
  ET_HD void put(int64_t at, T value) const {
    if (at < cut) {
      if (first) first[at] = value;
    } else if (second) {
      second[at - cut] = value;
    }
  }
};

template <int width, class T, class Sink>
__global__ void __launch_bounds__(1024)
    column_sum_kernel(const T* x, const __grid_constant__ ColumnPlan plan, int64_t tiles, Sink sink) {
  const int64_t column = (blockIdx.x % tiles * blockDim.x + threadIdx.x) * width;
  const int64_t k = blockIdx.x / tiles % plan.chunks, o = blockIdx.x / tiles / plan.chunks;
  const int64_t begin = k * plan.chunk,
                end = begin + plan.chunk < plan.reduced ? begin + plan.chunk : plan.reduced;
  const unsigned depth = blockDim.y;
  Vec<T, width> sum;
  if (column < plan.inner) {
    const T* from = x + (o * plan.reduced) * plan.inner + column;
    constexpr int together = width == 1 ? 8 : 4;  // reads under way
    for (int64_t r = begin + threadIdx.y; r < end; r += together * depth) {
      Vec<T, width> rows[together];
#pragma unroll
      for (int j = 0; j < together; ++j)
        if (r + j * depth < end) rows[j] = load_vec<width>(from + (r + j * depth) * plan.inner);
#pragma unroll
      for (int j = 0; j < together; ++j)
#pragma unroll
        for (int i = 0; i < width; ++i) sum.x[i] += rows[j].x[i];
    }
  }
  Vec<T, width>* shared = dynamic_shared<Vec<T, width>>();
  shared[threadIdx.y * blockDim.x + threadIdx.x] = sum;
  for (unsigned half = depth / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.y < half) {
      const Vec<T, width> other = shared[(threadIdx.y + half) * blockDim.x + threadIdx.x];
#pragma unroll
      for (int i = 0; i < width; ++i) sum.x[i] += other.x[i];
      shared[threadIdx.y * blockDim.x + threadIdx.x] = sum;
    }
  }
  if (threadIdx.y > 0 || column >= plan.inner) return;
#pragma unroll
  for (int i = 0; i < width; ++i) sink.put((o * plan.chunks + k) * plan.inner + column + i, sum.x[i]);
}

inline int64_t power_of_two_at_least(int64_t n) {
  int64_t p = 1;
  while (p < n) p *= 2;
  return p;
}

/// Packs of a row that a block of the first launch works on side by side.
template <class T>
int64_t columns_of_block(int64_t inner) {
  return std::min<int64_t>(32, power_of_two_at_least((inner + vec_width<T> - 1) / vec_width<T>));
}

/// The cut of the first launch: at most 528 blocks (four for each SM of a large GPU), of 8 rows a thread at
/// least.
template <class T>
ColumnPlan column_plan(int64_t outer, int64_t reduced, int64_t inner) {
  const int64_t across = columns_of_block<T>(inner),
                tiles = (inner + across * vec_width<T> - 1) / (across * vec_width<T>);
  const int64_t least = 256 / across * 8;
  const int64_t wanted = std::max<int64_t>(1, 528 / std::max<int64_t>(1, outer * tiles));
  const int64_t chunk = std::max(least, (reduced + wanted - 1) / wanted);
  return {outer, reduced, inner, chunk, std::max<int64_t>(1, (reduced + chunk - 1) / chunk)};
}

template <class T, class Sink>
void launch_column_sums(const Context& ctx, const T* x, const ColumnPlan& plan, const Sink& sink,
                        int64_t across, int64_t depth, bool wide) {
  const auto start = [&]<int width>() {
    const int64_t tiles = (plan.inner + across * width - 1) / (across * width);
    launch(ctx, column_sum_kernel<width, T, Sink>, static_cast<unsigned>(tiles * plan.chunks * plan.outer),
           dim3(static_cast<unsigned>(across), static_cast<unsigned>(depth)),
           static_cast<size_t>(across * depth * width) * sizeof(T), x, plan, tiles, sink);
  };
  if (plan.inner == 0 || plan.outer == 0) return;
  if (wide)
    start.template operator()<vec_width<T>>();
  else
    start.template operator()<1>();
}

/// The sums of each chunk of `plan` into partial [outer, chunks, inner].
template <class T, class Sink>
void sum_chunks(const Context& ctx, const T* x, const ColumnPlan& plan, const Sink& sink) {
  const bool wide = plan.inner % vec_width<T> == 0 && aligned_for_vec(x);
  const int64_t across =
      wide ? columns_of_block<T>(plan.inner) : std::min<int64_t>(32, power_of_two_at_least(plan.inner));
  launch_column_sums(ctx, x, plan, sink, across, 256 / across, wide);
}
/// Few rows, such as the chunks' sums: one block a tile of columns, many threads deep.
template <class T, class Sink>
void sum_rows(const Context& ctx, const T* x, int64_t outer, int64_t rows, int64_t inner, const Sink& sink) {
  const int64_t across = std::min<int64_t>(32, power_of_two_at_least(inner));
  const int64_t depth = std::min<int64_t>(1024 / across, power_of_two_at_least((rows + 3) / 4));
  launch_column_sums(ctx, x, ColumnPlan{outer, rows, inner, std::max<int64_t>(rows, 1), 1}, sink, across,
                     depth, false);
}

}  // namespace eigentrace
#endif
