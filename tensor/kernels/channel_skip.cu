// The feed-through of a state-space layer, per channel c:  z = y + d_c u,  du = d_c dz,  dd_c = Σ_rows dz u;
// alone or with what follows it, g = m f(z), dz = m f′(z) dg.
//
// One pass over the operands each way: 3 reads or writes of [rows, D], with the activation 4 forward (y, u,
// z, g; where nobody wants z 3, and y is kept in its place) and 6 backward (u, z or y, dg, what was sent, dz,
// du). CIFAR (rows 51200, D 512): 75, 100 (75) and 150 µs at 4.2 TB/s; the activation by itself would be 50
// and 75 µs more.
#include <algorithm>
#include <vector>

#include "tensor/dispatch.h"
#include "tensor/dropout_stream.h"
#include "tensor/functions.h"
#include "tensor/kernels.h"
#include "tensor/kernels/skip_from_y.h"
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/kernels/column_sum.cuh"
#endif

namespace eigentrace::kernels {
namespace {

constexpr int64_t most_rows = 65535 * 32;  // of a launch forward
constexpr int64_t rows_of_block = 4096;    // of one sum in the element's type on the CPU

template <class S>
struct Skip {
  Rows<S> y{}, u, z{};
  const Arithmetic<S>* d;
  Rows<S> sent{};  // backward: added to du, or without data
  ET_HD void operator()(int64_t row, int64_t column) const {
    z.data[row * z.stride + column] =
        y.data[row * y.stride + column] + d[column] * u.data[row * u.stride + column];
  }
};

#ifdef EIGENTRACE_WITH_CUDA
constexpr int skip_rows = 32;  // of a block forward

struct NoActivation {
  static constexpr bool active = false;
};
/// Any function, chosen in the kernel, the same for all threads.
struct AnyFunction {
  Unary f;
  template <class T>
  __device__ T value(T x) const {
    T y{};
    functions::with_function(f, [&]<class F>() { y = F::value(x); });
    return y;
  }
  template <class T>
  __device__ T derivative(T x) const {
    T y{};
    functions::with_function(f, [&]<class F>() { y = F::derivative(x); });
    return y;
  }
};
/// The one that the study's blocks have.
using Gelu = functions::GeluTanh;

/// What follows z. Forward: g is written. Backward: g is dg, dz is written.
template <class S, class F>
struct Activated {
  static constexpr bool active = true;
  using T = Arithmetic<S>;
  F f;
  MaskedElements mask;  // time −1: none
  Rows<S> g, z{}, dz_sent{}, dz{};
  bool from_y = false;  // backward: z holds y, from which z is made again

  /// Factors of a thread's channels, the same for all rows of a sequence if the mask is.
  template <int Width>
  __device__ void draw(int64_t row, int64_t column, int64_t& batch, Vec<T, Width>& m) const {
    if (mask.time < 0) return;
    const int64_t now =
        mask.time == 0 ? row
        : row <= INT32_MAX
            ? static_cast<int64_t>(static_cast<uint32_t>(row) / static_cast<uint32_t>(mask.time))
            : row / mask.time;
    if (now == batch) return;
    batch = now;
    m = mask.stream.template factors<T, Width>(now * g.cols + column);
  }
};
template <class T, int Width>
__device__ __forceinline__ Vec<T, Width> ones() {
  Vec<T, Width> m;
#pragma unroll
  for (int i = 0; i < Width; ++i) m.x[i] = T(1);
  return m;
}

template <class S, int Width, class Then>
__global__ void __launch_bounds__(256) skip_kernel(Skip<S> f, Then then) {
  using T = Arithmetic<S>;
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x % 32) * Width;
  if (column >= f.u.cols) return;
  const auto d = *reinterpret_cast<const Pack<T, Width>*>(f.d + column);
  [[maybe_unused]] Vec<T, Width> m = ones<T, Width>();
  [[maybe_unused]] int64_t drawn = -1;
#pragma unroll
  for (int k = 0; k < skip_rows / 8; ++k) {
    const int64_t row = static_cast<int64_t>(blockIdx.y) * skip_rows + k * 8 + threadIdx.x / 32;
    if (row >= f.u.rows) return;
    const auto y = *reinterpret_cast<const Pack<S, Width>*>(f.y.data + row * f.y.stride + column);
    const auto u = *reinterpret_cast<const Pack<S, Width>*>(f.u.data + row * f.u.stride + column);
    Pack<S, Width> z;
#pragma unroll
    for (int i = 0; i < Width; ++i) z.at[i] = y.at[i] + d.at[i] * u.at[i];
    if (!Then::active || f.z.data) store_whole(f.z.data + row * f.z.stride + column, z);
    if constexpr (Then::active) {
      then.draw(row, column, drawn, m);
      Pack<S, Width> to;
#pragma unroll
      for (int i = 0; i < Width; ++i) to.at[i] = m.x[i] * then.f.value(T(z.at[i]));
      store_whole(then.g.data + row * then.g.stride + column, to);
    }
  }
}

/// f.y: dz, if nothing follows; f.z: du (without data: not wanted); sums [pieces, D].
template <class S, int Width, class Then, class T = Arithmetic<S>>
__global__ void __launch_bounds__(256)
    skip_backward_kernel(const __grid_constant__ Skip<S> f, const __grid_constant__ Then then, int64_t length,
                         T* sums) {
  __shared__ T partial[8][32 * Width + 1];
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * 32 + lane) * Width;
  const int64_t begin = blockIdx.y * length, end = begin + length < f.u.rows ? begin + length : f.u.rows;
  Pack<T, Width> sum{};
  if (column < f.u.cols) {
    const auto d = *reinterpret_cast<const Pack<T, Width>*>(f.d + column);
    [[maybe_unused]] Vec<T, Width> m = ones<T, Width>();
    [[maybe_unused]] int64_t drawn = -1;
    constexpr int together =
        Then::active ? 2 : 4;  // rows whose reads are all on their way before the first write
    const auto place = [&](const Rows<S>& x, int64_t row) {
      return reinterpret_cast<Pack<S, Width>*>(x.data + row * x.stride + column);
    };
    for (int64_t first = begin + warp; first < end; first += 8 * together) {
      Pack<S, Width> dz[together], u[together], sent[together]{}, z[together], dz_sent[together]{};
#pragma unroll
      for (int r = 0; r < together; ++r) {
        const int64_t row = first + 8 * r;
        if (row >= end) continue;
        u[r] = *place(f.u, row);
        if (f.sent.data) sent[r] = *place(f.sent, row);
        if constexpr (Then::active) {
          dz[r] = *place(then.g, row), z[r] = *place(then.z, row);
          if (then.dz_sent.data) dz_sent[r] = *place(then.dz_sent, row);
        } else {
          dz[r] = *place(f.y, row);
        }
      }
#pragma unroll
      for (int r = 0; r < together; ++r) {
        const int64_t row = first + 8 * r;
        if (row >= end) continue;
        if constexpr (Then::active) {
          then.draw(row, column, drawn, m);
          if (then.from_y) {
#pragma unroll
            for (int i = 0; i < Width; ++i) z[r].at[i] = z[r].at[i] + d.at[i] * u[r].at[i];
          }
#pragma unroll
          for (int i = 0; i < Width; ++i)
            dz[r].at[i] = m.x[i] * then.f.derivative(T(z[r].at[i])) * T(dz[r].at[i]) + T(dz_sent[r].at[i]);
          store_whole(place(then.dz, row), dz[r]);
        }
        Pack<S, Width> du;
#pragma unroll
        for (int i = 0; i < Width; ++i) {
          sum.at[i] += T(dz[r].at[i]) * T(u[r].at[i]);
          du.at[i] = d.at[i] * T(dz[r].at[i]) + T(sent[r].at[i]);
        }
        if (f.z.data) store_whole(place(f.z, row), du);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < Width; ++i) partial[warp][lane * Width + i] = sum.at[i];
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < 32 * Width; i += 256) {
    const int64_t j = static_cast<int64_t>(blockIdx.x) * 32 * Width + i;
    if (j >= f.u.cols) break;
    T total = 0;
    for (int w = 0; w < 8; ++w) total += partial[w][i];
    sums[blockIdx.y * f.u.cols + j] = total;
  }
}

template <class S>
bool wide(const Rows<S>& x) {
  constexpr int64_t width = 16 / sizeof(Arithmetic<S>);
  return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.stride % width == 0 && x.cols % width == 0;
}
template <class S>
bool wide(const Skip<S>& f) {
  return (!f.y.data || wide(f.y)) && wide(f.u) && (!f.z.data || wide(f.z)) &&
         (!f.sent.data || wide(f.sent)) && reinterpret_cast<uintptr_t>(f.d) % 16 == 0;
}
bool wide(const NoActivation&) { return true; }
template <class S, class F>
bool wide(const Activated<S, F>& a) {
  const auto good = [](const Rows<S>& x) { return !x.data || wide(x); };
  return good(a.g) && good(a.z) && good(a.dz_sent) && good(a.dz);
}

template <class S, class Then>
void start_forward(const Context& ctx, const Skip<S>& f, const Then& then) {
  constexpr int most = 16 / sizeof(Arithmetic<S>);
  const int width = wide(f) && wide(then) ? most : 1;
  const dim3 grid(blocks_for(f.u.cols, 32 * width), blocks_for(f.u.rows, skip_rows));
  launch(ctx, width > 1 ? skip_kernel<S, most, Then> : skip_kernel<S, 1, Then>, grid, 256, 0, f, then);
}
/// sums: [pieces, D].
template <class S, class Then, class T>
void start_backward(Context& ctx, const Skip<S>& f, const Then& then, int64_t length, int64_t pieces, T* sums,
                    Tensor& dd) {
  constexpr int most = 16 / sizeof(T);
  const int64_t columns = f.u.cols;
  const int width = wide(f) && wide(then) ? most : 1;
  launch(ctx, width > 1 ? skip_backward_kernel<S, most, Then> : skip_backward_kernel<S, 1, Then>,
         dim3(blocks_for(columns, 32 * width), static_cast<unsigned>(pieces)), 256, 0, f, then, length, sums);
  if (dd.defined())
    launch_column_sum(ctx, Rows<T>{sums, pieces, columns, columns}, pieces, 1, dd.data<T>(), 0, 1);
}

/// run(what follows) with the study's function compiled in for float32.
template <class S, class Run>
void with_activated(const Context& ctx, Unary f, const Dropout& drop, const Tensor& g, Run&& run) {
  MaskedElements mask = masked_elements(ctx, drop, g);
  if (drop.p == 0) mask.time = -1;
  const Rows<S> rows = rows_of<S>(g, "channel_skip_activation: g");
  if constexpr (std::is_same_v<S, float>)
    if (f == Unary::gelu_tanh) return run(Activated<S, Gelu>{{}, mask, rows});
  run(Activated<S, AnyFunction>{{f}, mask, rows});
}
#endif

/// Rows of a block of the backward pass on CUDA.
int64_t piece_length(int64_t rows, int64_t columns) {
  const int64_t strips = (columns + 127) / 128,
                wanted = std::max<int64_t>(1, 528 / std::max<int64_t>(1, strips));
  return std::max<int64_t>(64, (rows + wanted - 1) / wanted);
}

#ifdef EIGENTRACE_WITH_CUDA
/// Operands of the activation's backward pass; kept: z, or y (from_y).
struct ActivationBackward {
  const Tensor &u, &d, &kept;
  bool from_y;
  Unary f;
  const Dropout& drop;
  const Tensor &dg, &dz_sent;
  Tensor &dz, &du, &dd;
  const Tensor& sent;
};
void activation_backward_cuda(Context& ctx, const ActivationBackward& o) {
  const int64_t columns = o.u.dim(-1), rows = o.u.numel() / columns, length = piece_length(rows, columns),
                pieces = (rows + length - 1) / length;
  Tensor sums = ctx.empty({pieces, columns}, o.d.dtype());
  dispatch_stored(ctx, "channel_skip_activation_backward", o.u.dtype(), [&]<class S>() {
    const auto part = [](const Tensor& x, const char* what) {
      return x.defined() ? rows_of<S>(x, what) : Rows<S>{};
    };
    Skip<S> skip{.u = rows_of<S>(o.u, "channel_skip_activation_backward: u"), .d = o.d.data<Arithmetic<S>>()};
    skip.z = part(o.du, "channel_skip_activation_backward: du");
    skip.sent = part(o.sent, "channel_skip_activation_backward: sent");
    with_activated<S>(ctx, o.f, o.drop, o.dg, [&](auto then) {
      then.z = part(o.kept, "channel_skip_activation_backward: z");
      then.from_y = o.from_y;
      then.dz = part(o.dz, "channel_skip_activation_backward: dz");
      then.dz_sent = part(o.dz_sent, "channel_skip_activation_backward: dz_sent");
      start_backward(ctx, skip, then, length, pieces, sums.data<Arithmetic<S>>(), o.dd);
    });
  });
}
#endif

}  // namespace

void channel_skip(Context& ctx, const Tensor& y, const Tensor& u, const Tensor& d, Tensor& z) {
  dispatch_stored(ctx, "channel_skip", u.dtype(), [&]<class S>() {
    const Skip<S> f{rows_of<S>(y, "channel_skip: y"), rows_of<S>(u, "channel_skip: u"),
                    rows_of<S>(z, "channel_skip: z"), d.data<Arithmetic<S>>()};
    if (f.u.rows * f.u.cols == 0) return;
#ifdef EIGENTRACE_WITH_CUDA
    if (ctx.device().is_cuda() && f.u.rows <= most_rows) return start_forward(ctx, f, NoActivation{});
#endif
    for_each_in_rows(ctx, f.u.rows, f.u.cols, f);
  });
}

void channel_skip_backward(Context& ctx, const Tensor& u, const Tensor& d, const Tensor& dz, Tensor& du,
                           Tensor& dd, const Tensor& sent) {
  const int64_t columns = u.dim(-1), rows = columns > 0 ? u.numel() / columns : 0;
  const int64_t length = piece_length(rows, columns),
                pieces = std::max<int64_t>(1, (rows + length - 1) / length);
  Tensor sums;
  if (ctx.device().is_cuda()) sums = ctx.empty({pieces, columns}, d.dtype());
  dispatch_stored(ctx, "channel_skip_backward", u.dtype(), [&]<class S>() {
    using T = Arithmetic<S>;
    Skip<S> f{rows_of<S>(dz, "channel_skip_backward: dz"), rows_of<S>(u, "channel_skip_backward: u"),
              Rows<S>{}, d.data<T>()};
    if (du.defined()) f.z = rows_of<S>(du, "channel_skip_backward: du");
    if (sent.defined()) f.sent = rows_of<S>(sent, "channel_skip_backward: sent");
#ifdef EIGENTRACE_WITH_CUDA
    if (ctx.device().is_cuda()) {
      if (columns == 0) return;
      return start_backward(ctx, f, NoActivation{}, length, pieces, sums.data<T>(), dd);
    }
#endif
    require_cpu(ctx, "channel_skip_backward");
    const int64_t blocks = (rows + rows_of_block - 1) / rows_of_block;
    std::vector<double> parts(static_cast<size_t>(blocks * columns));
    parallel_rows(blocks, [&](int64_t block) {
      double* part = parts.data() + block * columns;
      for (int64_t r = block * rows_of_block; r < std::min(rows, (block + 1) * rows_of_block); ++r) {
        const S *a = f.u.data + r * f.u.stride, *g = f.y.data + r * f.y.stride;
        S* to = f.z.data ? f.z.data + r * f.z.stride : nullptr;
        const T* by = f.d;
#pragma omp simd
        for (int64_t c = 0; c < columns; ++c)
          part[c] += static_cast<double>(a[c]) * static_cast<double>(g[c]);
        if (!to) continue;
        const S* sent_row = f.sent.data ? f.sent.data + r * f.sent.stride : nullptr;
        if (sent_row) {
#pragma omp simd
          for (int64_t c = 0; c < columns; ++c) to[c] = sent_row[c] + by[c] * g[c];
        } else {
#pragma omp simd
          for (int64_t c = 0; c < columns; ++c) to[c] = by[c] * g[c];
        }
      }
    });
    if (!dd.defined()) return;
    for (int64_t c = 0; c < columns; ++c) {
      double sum = 0;
      for (int64_t block = 0; block < blocks; ++block) sum += parts[static_cast<size_t>(block * columns + c)];
      dd.data<T>()[c] = static_cast<T>(sum);
    }
  });
}

void channel_skip_activation(Context& ctx, const Tensor& y, const Tensor& u, const Tensor& d, Unary f,
                             const Dropout& drop, Tensor& z, Tensor& g) {
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda() && u.numel() > 0 && u.numel() / u.dim(-1) <= most_rows)
    return dispatch_stored(ctx, "channel_skip_activation", u.dtype(), [&]<class S>() {
      const Skip<S> skip{
          rows_of<S>(y, "channel_skip_activation: y"), rows_of<S>(u, "channel_skip_activation: u"),
          z.defined() ? rows_of<S>(z, "channel_skip_activation: z") : Rows<S>{}, d.data<Arithmetic<S>>()};
      with_activated<S>(ctx, f, drop, g, [&](const auto& then) { start_forward(ctx, skip, then); });
    });
#endif
  Tensor made = z.defined() ? z : ctx.empty(u.shape(), u.dtype());
  channel_skip(ctx, y, u, d, made);
  activation(ctx, f, made, drop, g);
}

void channel_skip_activation_backward(Context& ctx, const Tensor& u, const Tensor& d, const Tensor& z,
                                      Unary f, const Dropout& drop, const Tensor& dg, const Tensor& dz_sent,
                                      Tensor& dz, Tensor& du, Tensor& dd, const Tensor& sent) {
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda() && u.numel() > 0)
    return activation_backward_cuda(ctx, {u, d, z, false, f, drop, dg, dz_sent, dz, du, dd, sent});
#endif
  activation_backward(ctx, f, z, drop, dg, dz);
  if (dz_sent.defined()) accumulate(ctx, dz_sent, dz);
  if (du.defined() || dd.defined()) channel_skip_backward(ctx, u, d, dz, du, dd, sent);
}

void channel_skip_activation_backward_from_y(Context& ctx, const Tensor& y, const Tensor& u, const Tensor& d,
                                             Unary f, const Dropout& drop, const Tensor& dg, Tensor& dy,
                                             Tensor& du, Tensor& dd, const Tensor& sent) {
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda() && u.numel() > 0)
    return activation_backward_cuda(ctx, {u, d, y, true, f, drop, dg, Tensor(), dy, du, dd, sent});
#endif
  Tensor z = ctx.empty(u.shape(), u.dtype());
  channel_skip(ctx, y, u, d, z);
  channel_skip_activation_backward(ctx, u, d, z, f, drop, dg, Tensor(), dy, du, dd, sent);
}

}  // namespace eigentrace::kernels
