#pragma once
// What both bodies of batch_norm.cu share, and its CUDA bodies.
//
// Forward: a block takes moments of 128 rows of a tile of columns in one read of x; a second launch merges
// the blocks; a third normalises. Backward: Σ dy and Σ dy x̂ of chunks of rows in one pass, their sums, then
// dx. Bytes an element, float32: 12 forward (x twice, y), 20 backward (x and dy twice, dx). CIFAR, 105 MB an
// activation: floors of 75 µs and 125 µs at 4.2 TB/s; IMDB, 12.6 MB: 9 µs and 15 µs.
// After a gate (gated_batch_norm.h): 24 forward (a, z, the residual; x, which is read again; y), 36 backward
// (x and dy twice, a, z; dx, da, dz), where the gate by itself would read and write 16 and 20 more.
#include <algorithm>

#include "tensor/column_sums.h"
#include "tensor/dropout_stream.h"
#include "tensor/kernels.h"
#include "tensor/kernels/gate_function.h"
#include "tensor/kernels/merged_moments.cuh"

namespace eigentrace::kernels {

constexpr int64_t batch_norm_rows = 128;  // of a block of CUDA's first launch

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

/// What batch_norm_backward reads and writes; dx, dsum: or undefined.
struct BatchNormGradients {
  const Tensor &x, &weight, &mean, &rstd;
  bool training;
  const Tensor &dy, &dx, &dweight, &dbias, &dsum;
};

#ifdef EIGENTRACE_WITH_CUDA
template <class S>
bool rows_are_wide(const Rows<S>& x) {
  constexpr int64_t width = vec_width<Arithmetic<S>>;
  return x.cols % width == 0 && x.stride % width == 0 && aligned_for_vec(x.data);
}

/// Dropout's factors of a thread's channels in the rows that it meets one after another.
template <class T, int width>
struct RowMask {
  Vec<T, width> factor;
  int64_t drawn = -1;
  __device__ RowMask() {
#pragma unroll
    for (int i = 0; i < width; ++i) factor.x[i] = T(1);
  }
  /// mask.time −1: none, 0: a draw each, else one for all rows of a sequence.
  __device__ __forceinline__ void draw(const MaskedElements& mask, int64_t row, int64_t column,
                                       int64_t columns) {
    if (mask.time < 0) return;
    const int64_t now =
        mask.time == 0 ? row
        : row <= INT32_MAX
            ? static_cast<int64_t>(static_cast<uint32_t>(row) / static_cast<uint32_t>(mask.time))
            : row / mask.time;
    if (now == drawn) return;
    drawn = now;
    factor = mask.stream.template factors<T, width>(now * columns + column);
  }
};

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

/// Where the moments' rows come from: memory,
template <class S>
struct StoredRows {
  static constexpr int inputs = 1;
  Rows<S> x;
  bool wide() const { return rows_are_wide(x); }
  template <class T, int width>
  __device__ __forceinline__ void load(int64_t row, int64_t column, Vec<T, width> (&in)[1]) const {
    in[0] = load_as<T, width>(x.data + row * x.stride + column);
  }
  template <class T, int width>
  __device__ __forceinline__ Vec<T, width> value(int64_t, int64_t, const Vec<T, width> (&in)[1],
                                                 RowMask<T, width>&) const {
    return in[0];
  }
};
/// or a gate, whose result is written on the way.
template <class S>
struct GatedRows {
  static constexpr int inputs = 3;
  GateFunction f;
  Rows<S> x, a, z, residual;  // residual: or without data
  MaskedElements mask;        // time −1: none
  bool wide() const {
    return rows_are_wide(x) && rows_are_wide(a) && rows_are_wide(z) &&
           (!residual.data || rows_are_wide(residual));
  }
  template <class T, int width>
  __device__ __forceinline__ void load(int64_t row, int64_t column, Vec<T, width> (&in)[3]) const {
    in[0] = load_as<T, width>(a.data + row * a.stride + column);
    in[1] = load_as<T, width>(z.data + row * z.stride + column);
    in[2] =
        residual.data ? load_as<T, width>(residual.data + row * residual.stride + column) : Vec<T, width>{};
  }
  template <class T, int width>
  __device__ __forceinline__ Vec<T, width> value(int64_t row, int64_t column, const Vec<T, width> (&in)[3],
                                                 RowMask<T, width>& m) const {
    m.draw(mask, row, column, x.cols);
    Vec<T, width> sum = in[2];
#pragma unroll
    for (int i = 0; i < width; ++i) {
      sum.x[i] += m.factor.x[i] * (in[0].x[i] * f.value(in[1].x[i]));
      if constexpr (!std::is_same_v<S, T>) sum.x[i] = T(S(sum.x[i]));
    }
    store_as(x.data + row * x.stride + column, sum);
    return sum;
  }
};

/// A thread sums x and x² around the first number that it meets, 16 of a block's 128 rows; a column's threads
/// merge pairwise.
template <int width, class Source, class T>
__global__ void __launch_bounds__(256)
    batch_moments_kernel(const __grid_constant__ Source source, T* means, T* squares) {
  constexpr int inputs = Source::inputs, at_once = inputs == 1 ? 8 : 4;
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x) * width;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * batch_norm_rows;
  const int64_t left = source.x.rows - begin, columns = source.x.cols;
  const int rows = static_cast<int>(left < batch_norm_rows ? left : batch_norm_rows);
  const bool inside = column < columns;
  Vec<T, width> origin, sum, square;
  RowMask<T, width> mask;
  int met = 0;
  for (int first = static_cast<int>(threadIdx.y); inside && first < rows; first += 8 * at_once) {
    Vec<T, width> in[at_once][inputs];
#pragma unroll
    for (int k = 0; k < at_once; ++k)
      if (first + 8 * k < rows) source.template load<T, width>(begin + first + 8 * k, column, in[k]);
#pragma unroll
    for (int k = 0; k < at_once; ++k) {
      if (first + 8 * k >= rows) break;
      const auto x = source.template value<T, width>(begin + first + 8 * k, column, in[k], mask);
      if (met++ == 0) origin = x;
#pragma unroll
      for (int i = 0; i < width; ++i) {
        const T from = x.x[i] - origin.x[i];
        sum.x[i] += from, square.x[i] += from * from;
      }
    }
  }
  Moments<T>* shared = dynamic_shared<Moments<T>>();  // [8, width, 32]
  Moments<T> all[width];
#pragma unroll
  for (int i = 0; i < width; ++i) {
    const T mean = met > 0 ? sum.x[i] / static_cast<T>(met) : T(0);
    all[i] = {origin.x[i] + mean, square.x[i] - sum.x[i] * mean, met};
    shared[(threadIdx.y * width + i) * 32 + threadIdx.x] = all[i];
  }
  for (unsigned half = 4; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.y >= half) continue;
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const Moments<T> other = shared[((threadIdx.y + half) * width + i) * 32 + threadIdx.x];
      if (other.n > 0) all[i].add(other);
      shared[(threadIdx.y * width + i) * 32 + threadIdx.x] = all[i];
    }
  }
  if (threadIdx.y > 0 || !inside) return;
#pragma unroll
  for (int i = 0; i < width; ++i) {
    means[blockIdx.y * columns + column + i] = all[i].mean;
    squares[blockIdx.y * columns + column + i] = all[i].square > 0 ? all[i].square : T(0);
  }
}

template <class T, class Source>
void batch_moments_cuda(const Context& ctx, const Source& source, const MergedBlocks<T>& m) {
  if (m.columns == 0) return;
  T *means = const_cast<T*>(m.means), *squares = const_cast<T*>(m.squares);
  const auto start = [&]<int width>() {
    const dim3 grid(blocks_for(m.columns, 32 * width), static_cast<unsigned>(m.blocks.count));
    launch(ctx, batch_moments_kernel<width, Source, T>, grid, dim3(32, 8), 256 * width * sizeof(Moments<T>),
           source, means, squares);
  };
  if (source.wide())
    start.template operator()<vec_width<T>>();
  else
    start.template operator()<1>();
  launch(ctx, merge_kernel<T>, blocks_for(m.columns, merge_columns), dim3(merge_columns, merge_threads),
         merge_columns * merge_threads * sizeof(Moments<T>), m);
}

/// Column constants of a thread stay in registers over its rows: 8 warps a block, each `at_once` rows of
/// every 8 · at_once, so that their reads are all on their way before the first write.
constexpr int norm_block_rows = 64;

/// body(width, wide blocks) of the kernels that walk rows.
template <class T, class Start>
void start_rows(int64_t rows, int64_t columns, bool wide, Start&& start) {
  if (rows * columns == 0) return;
  const auto grid = [&](int width) {
    return static_cast<unsigned>(blocks_for(columns, 32 * width) * blocks_for(rows, norm_block_rows));
  };
  if (wide)
    start.template operator()<vec_width<T>>(grid(vec_width<T>));
  else
    start.template operator()<1>(grid(1));
}
/// A thread's columns and the first row of its block.
template <int width>
struct Place {
  int64_t column, begin;
  __device__ explicit Place(int64_t columns) {
    const auto tiles = static_cast<unsigned>((columns + 32 * width - 1) / (32 * width));
    column = (static_cast<int64_t>(blockIdx.x % tiles) * 32 + threadIdx.x) * width;
    begin = static_cast<int64_t>(blockIdx.x / tiles) * norm_block_rows + threadIdx.y;
  }
};

template <class S>
struct BatchApply {
  Rows<S> x, y;
  const Arithmetic<S>*mean, *rstd, *weight, *bias;
};
template <int width, class S, class T = Arithmetic<S>>
__global__ void __launch_bounds__(256) batch_apply_kernel(const __grid_constant__ BatchApply<S> o) {
  constexpr int at_once = 4;
  const Place<width> at(o.x.cols);
  const int64_t column = at.column;
  if (column >= o.x.cols) return;
  const Vec<T, width> mean = load_vec<width>(o.mean + column), rstd = load_vec<width>(o.rstd + column);
  const Vec<T, width> weight = load_vec<width>(o.weight + column), bias = load_vec<width>(o.bias + column);
#pragma unroll
  for (int first = 0; first < norm_block_rows; first += 8 * at_once) {
    Vec<T, width> x[at_once];
#pragma unroll
    for (int k = 0; k < at_once; ++k) {
      const int64_t row = at.begin + first + 8 * k;
      if (row < o.x.rows) x[k] = load_as<T, width>(o.x.data + row * o.x.stride + column);
    }
#pragma unroll
    for (int k = 0; k < at_once; ++k) {
      const int64_t row = at.begin + first + 8 * k;
      if (row >= o.x.rows) return;
#pragma unroll
      for (int i = 0; i < width; ++i)
        x[k].x[i] = (x[k].x[i] - mean.x[i]) * rstd.x[i] * weight.x[i] + bias.x[i];
      store_as(o.y.data + row * o.y.stride + column, x[k]);
    }
  }
}
template <class S>
void batch_apply_cuda(const Context& ctx, const BatchApply<S>& o) {
  const bool wide = rows_are_wide(o.x) && rows_are_wide(o.y) && aligned_for_vec(o.mean) &&
                    aligned_for_vec(o.rstd) && aligned_for_vec(o.weight) && aligned_for_vec(o.bias);
  start_rows<Arithmetic<S>>(o.x.rows, o.x.cols, wide, [&]<int width>(unsigned grid) {
    launch(ctx, batch_apply_kernel<width, S>, grid, dim3(32, 8), 0, o);
  });
}

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

/// dx, and what becomes of it: nothing more,
struct NoGate {
  bool wide() const { return true; }
};
/// or the gradients of a gate that made x.
template <class S>
struct GateGradients {
  GateFunction f;
  Rows<S> a, z, da, dz;  // da, dz: without data: not wanted
  MaskedElements mask;   // time −1: none
  bool wide() const {
    return rows_are_wide(a) && rows_are_wide(z) && (!da.data || rows_are_wide(da)) &&
           (!dz.data || rows_are_wide(dz));
  }
};

template <class S>
struct BatchBackward {
  using T = Arithmetic<S>;
  Rows<S> x, dy, dx{}, sent{};  // sent: added to dx, or without data
  const T *mean, *rstd, *weight;
  const T *dweight = nullptr, *dbias = nullptr;  // null in evaluation: the statistics do not depend on x
  double factor;                                 // 1/rows
  bool wide() const {
    return rows_are_wide(x) && rows_are_wide(dy) && rows_are_wide(dx) &&
           (!sent.data || rows_are_wide(sent)) && aligned_for_vec(mean) && aligned_for_vec(rstd) &&
           aligned_for_vec(weight) && aligned_for_vec(dweight) && aligned_for_vec(dbias);
  }
};
template <int width, class S, class Then, class T = Arithmetic<S>>
__global__ void __launch_bounds__(256)
    batch_backward_kernel(const __grid_constant__ BatchBackward<S> o, const __grid_constant__ Then then) {
  constexpr bool gated = !std::is_same_v<Then, NoGate>;
  constexpr int at_once = gated ? 2 : 4;
  const Place<width> at(o.x.cols);
  const int64_t column = at.column;
  if (column >= o.x.cols) return;
  const Vec<T, width> mean = load_vec<width>(o.mean + column), rstd = load_vec<width>(o.rstd + column);
  const Vec<T, width> weight = load_vec<width>(o.weight + column);
  Vec<T, width> dweight, dbias;
  if (o.dweight) dweight = load_vec<width>(o.dweight + column), dbias = load_vec<width>(o.dbias + column);
  const T factor = T(o.factor);
  [[maybe_unused]] RowMask<T, width> mask;
#pragma unroll
  for (int first = 0; first < norm_block_rows; first += 8 * at_once) {
    Vec<T, width> x[at_once], dy[at_once], sent[at_once], a[at_once], z[at_once];
#pragma unroll
    for (int k = 0; k < at_once; ++k) {
      const int64_t row = at.begin + first + 8 * k;
      if (row >= o.x.rows) continue;
      x[k] = load_as<T, width>(o.x.data + row * o.x.stride + column);
      dy[k] = load_as<T, width>(o.dy.data + row * o.dy.stride + column);
      if (o.sent.data) sent[k] = load_as<T, width>(o.sent.data + row * o.sent.stride + column);
      if constexpr (gated) {
        a[k] = load_as<T, width>(then.a.data + row * then.a.stride + column);
        z[k] = load_as<T, width>(then.z.data + row * then.z.stride + column);
      }
    }
#pragma unroll
    for (int k = 0; k < at_once; ++k) {
      const int64_t row = at.begin + first + 8 * k;
      if (row >= o.x.rows) return;
      Vec<T, width> dx;
#pragma unroll
      for (int i = 0; i < width; ++i) {
        T g = dy[k].x[i];
        if (o.dweight) g -= (dbias.x[i] + (x[k].x[i] - mean.x[i]) * rstd.x[i] * dweight.x[i]) * factor;
        dx.x[i] = sent[k].x[i] + weight.x[i] * rstd.x[i] * g;
      }
      store_as(o.dx.data + row * o.dx.stride + column, dx);
      if constexpr (gated) {
        mask.draw(then.mask, row, column, o.x.cols);
#pragma unroll
        for (int i = 0; i < width; ++i) {
          const T g = mask.factor.x[i] * dx.x[i];
          dx.x[i] = g * a[k].x[i] * then.f.derivative(z[k].x[i]);
          a[k].x[i] = g * then.f.value(z[k].x[i]);
        }
        if (then.da.data) store_as(then.da.data + row * then.da.stride + column, a[k]);
        if (then.dz.data) store_as(then.dz.data + row * then.dz.stride + column, dx);
      }
    }
  }
}

/// with_then(body, type of S): body(what becomes of dx).
template <class WithThen>
void batch_norm_backward_cuda(Context& ctx, const BatchNormGradients& n, const WithThen& with_then) {
  const int64_t width = n.x.dim(-1), rows = width == 0 ? 0 : n.x.numel() / width;
  const int64_t tiles = std::max<int64_t>(1, (width + 127) / 128), wanted = std::max<int64_t>(1, 528 / tiles);
  const int64_t chunk = std::max<int64_t>(64, (rows + wanted - 1) / wanted),
                chunks = (rows + chunk - 1) / chunk;
  const Tensor partial = ctx.empty({chunks, 2, width}, n.weight.dtype());
  dispatch_stored(ctx, "batch_norm_backward", n.x.dtype(), [&]<class S>() {
    using T = Arithmetic<S>;
    BatchBackward<S> o{.x = rows_of<S>(n.x, "batch_norm_backward: x"),
                       .dy = rows_of<S>(n.dy, "batch_norm_backward: dy"),
                       .mean = n.mean.data<T>(),
                       .rstd = n.rstd.data<T>(),
                       .weight = n.weight.data<T>(),
                       .factor = 1.0 / static_cast<double>(std::max<int64_t>(rows, 1))};
    const auto start = [&]<int w>() {
      launch(ctx, batch_sums_kernel<w, S>, dim3(blocks_for(width, 32 * w), static_cast<unsigned>(chunks)),
             dim3(32, 8), 256 * w * sizeof(T), o.x, o.dy, o.mean, o.rstd, chunk, partial.data<T>());
    };
    const bool wide =
        rows_are_wide(o.x) && rows_are_wide(o.dy) && aligned_for_vec(o.mean) && aligned_for_vec(o.rstd);
    if (n.x.numel() > 0 && wide) start.template operator()<vec_width<T>>();
    if (n.x.numel() > 0 && !wide) start.template operator()<1>();
    sum_rows(ctx, partial.data<T>(), 1, chunks, 2 * width,
             SplitSink<T>{n.dweight.data<T>(), n.dbias.data<T>(), width});
    if (!n.dx.defined()) return;
    if (n.training) o.dweight = n.dweight.data<T>(), o.dbias = n.dbias.data<T>();
    o.dx = rows_of<S>(n.dx, "batch_norm_backward: dx");
    if (n.dsum.defined()) o.sent = rows_of<S>(n.dsum, "batch_norm_backward: dsum");
    const auto make_dx = [&]<class Then>(const Then& then) {
      start_rows<T>(rows, width, o.wide() && then.wide(), [&]<int w>(unsigned grid) {
        launch(ctx, batch_backward_kernel<w, S, Then>, grid, dim3(32, 8), 0, o, then);
      });
    };
    with_then(make_dx, std::type_identity<S>{});
  });
}
#endif

}  // namespace eigentrace::kernels
