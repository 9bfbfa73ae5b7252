#pragma once
// What both bodies of causal_conv1d.cu share, and its CUDA bodies.
//
// Four taps: a thread owns a pack of channels (16 bytes where rows allow) over a piece of time, the last
// steps of x in registers, so that x is read once and y written once (and three steps more at the start of a
// piece, from the cache). Backward in one pass: dz of a step is made once (three steps more at the end of a
// piece), dx leaves three steps later, and dw and db of the piece stay in registers; the pieces of a block
// are summed in order, the blocks by a second launch. Any other number of taps: a thread an element. Bytes an
// element, float32: 8 forward, 12 backward. CIFAR, 640 channels, 131 MB a tensor: floors of 62 µs and 94 µs
// at 4.2 TB/s; MQAR, 384 channels, 50 MB: 24 µs and 36 µs.
#include <algorithm>

#include "tensor/column_sums.h"
#include "tensor/dispatch.h"
#include "tensor/functions.h"
#include "tensor/kernels/causal_conv1d_elu.h"
#include "tensor/math.h"
#include "tensor/vec.h"

namespace eigentrace::kernels {

constexpr int64_t conv_time_block = 512;  // steps whose weight gradient is one partial sum
constexpr int64_t conv_fast_taps = 4, conv_depth = 4;

// S: what x, y and their gradients lie in memory as; T: what is computed with, and the parameters' type.
template <class S>
struct CausalConv {
  using T = Arithmetic<S>;
  const S* x;
  const T *weight, *bias;
  int64_t batch, time, channels, taps, x_batch, x_time;
  bool silu;
  ChannelRange elu;  // channels that are elu + 1 of what they would be; forward alone

  ET_HD static T map(T y) { return functions::EluPlusOne::value(y); }
  ET_HD T z(int64_t b, int64_t t, int64_t c) const {
    T sum = bias[c];
    for (int64_t k = t < taps - 1 ? taps - 1 - t : 0; k < taps; ++k)
      sum += weight[c * taps + k] * x[b * x_batch + (t - taps + 1 + k) * x_time + c];
    return sum;
  }
  ET_HD static T silu_slope(T z) {
    const T s = sigmoid(z);
    return s * (T(1) + z * (T(1) - s));
  }
  ET_HD T slope(T z) const {  // SiLU′ or 1
    return silu ? silu_slope(z) : T(1);
  }
};

template <class S>
struct ConvGradients {
  const S* dy;
  int64_t dy_batch, dy_time;
  S* dx;  // null: not wanted
  int64_t dx_batch, dx_time;
  Arithmetic<S>* partial;  // [pieces of time, K + 1, C] or null
};

/// Steps of a piece of time, one thread's work: long enough that what a piece begins with (8 steps' worth)
/// counts for little, and such that the last of the rounds that a large GPU makes of the blocks, `resident`
/// of them at a time, is a full one. width: channels of a thread.
inline int64_t conv_steps(const Shape& x, int64_t width) {
  constexpr int64_t resident = 6 * 132;
  const auto blocks = [&](int64_t n, int64_t of) { return (n + of - 1) / of; };
  int64_t best = 8, least = INT64_MAX;
  for (int64_t steps = 8; steps <= 256; steps += 8) {
    const int64_t count = x[0] * blocks(x[1], steps * conv_depth) * blocks(x[2], 32 * width);
    const int64_t cost = blocks(count, resident) * (steps + 8);
    if (cost < least) best = steps, least = cost;
  }
  return best;
}
constexpr int conv_forward_width = 4, conv_backward_width = 2;
/// Partial sums of the weights' gradient.
inline int64_t conv_pieces(const Shape& x, int64_t taps) {
  const int64_t steps =
      taps == conv_fast_taps ? conv_steps(x, conv_backward_width) * conv_depth : conv_time_block;
  return x[0] * ((x[1] + steps - 1) / steps);
}

#ifdef EIGENTRACE_WITH_CUDA
/// dw[c, k], db[c] from sums [K + 1, C].
template <class T>
struct ConvSink {
  T *dweight, *dbias;
  int64_t channels, taps;
  ET_HD void put(int64_t at, T value) const {
    const int64_t k = at / channels, c = at % channels;
    if (k == taps) {
      if (dbias) dbias[c] = value;
    } else if (dweight) {
      dweight[c * taps + k] = value;
    }
  }
};

// --- four taps ---

/// Steps in registers, by time modulo this: the last four, and the next ones on their way.
constexpr int conv_ring = 8;

/// A thread's channels, their taps and bias.
template <int width, class S>
struct ConvLane {
  using T = Arithmetic<S>;
  static constexpr int taps = conv_fast_taps;
  Vec<T, width> w[taps], bias;
  const S* x;  ///< of the thread's batch and channels
  int64_t x_time;
  int time;
  bool silu;

  __device__ __forceinline__ ConvLane(const CausalConv<S>& conv, int64_t b, int64_t c)
      : x(conv.x + b * conv.x_batch + c),
        x_time(conv.x_time),
        time(static_cast<int>(conv.time)),
        silu(conv.silu) {
#pragma unroll
    for (int i = 0; i < width; ++i) {
      bias.x[i] = conv.bias[c + i];
#pragma unroll
      for (int k = 0; k < taps; ++k) w[k].x[i] = conv.weight[(c + i) * taps + k];
    }
  }
  __device__ __forceinline__ Vec<T, width> at(int t) const {
    return t >= 0 && t < time ? load_as<T, width>(x + t * x_time) : Vec<T, width>{};
  }
  /// z of the step whose x is ring[j].
  __device__ __forceinline__ Vec<T, width> z(const Vec<T, width> (&ring)[conv_ring], int j) const {
    Vec<T, width> z = bias;
#pragma unroll
    for (int k = 0; k < taps; ++k)
#pragma unroll
      for (int i = 0; i < width; ++i) z.x[i] += w[k].x[i] * ring[(j + 1 + k - taps) & (conv_ring - 1)].x[i];
    return z;
  }
};

template <int width, bool maps, class S>
__global__ void __launch_bounds__(128, sizeof(S) <= 4 ? 6 : 1)
    conv_forward_kernel(const __grid_constant__ CausalConv<S> conv, S* y, int steps) {
  using T = Arithmetic<S>;
  constexpr int taps = conv_fast_taps, ring = conv_ring, ahead = ring - taps;
  const int64_t c = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * width, b = blockIdx.z;
  const int time = static_cast<int>(conv.time);
  const int begin = static_cast<int>(blockIdx.y * blockDim.y + threadIdx.y) * steps;
  if (c >= conv.channels || begin >= time) return;
  const int end = begin + steps < time ? begin + steps : time;
  const ConvLane<width, S> lane(conv, b, c);
  S* to = y + (b * conv.time + begin) * conv.channels + c;
  const int map_begin = static_cast<int>(conv.elu.begin - c), map_end = static_cast<int>(conv.elu.end - c);
  const bool maps_any = maps && map_begin < width && map_end > 0;
  Vec<T, width> x[ring];  // of begin + j at j modulo ring
#pragma unroll
  for (int j = 1 - taps; j < ahead; ++j) x[j & (ring - 1)] = lane.at(begin + j);
  const S* from = lane.x + (begin + ahead) * lane.x_time;
  // whole: nothing that it reads lies behind the end, and SiLU follows
  const auto round = [&]<bool whole>(int first) {
#pragma unroll
    for (int j = 0; j < ring; ++j) {
      const int t = first + j;
      if (!whole && t >= end) return;
      if (whole || t + ahead < end) x[(j + ahead) & (ring - 1)] = load_as<T, width>(from);
      from += lane.x_time;
      Vec<T, width> z = lane.z(x, j);
#pragma unroll
      for (int i = 0; i < width; ++i) z.x[i] *= whole || lane.silu ? sigmoid(z.x[i]) : T(1);
      if (maps_any)
#pragma unroll
        for (int i = 0; i < width; ++i)
          if (i >= map_begin && i < map_end) z.x[i] = conv.map(z.x[i]);
      store_as(to, z);
      to += conv.channels;
    }
  };
  for (int first = begin; first < end; first += ring)
    if (lane.silu && first + ring + ahead <= end)
      round.template operator()<true>(first);
    else
      round.template operator()<false>(first);
}

/// Block: x over packs of channels, y over pieces of time, whose sums it adds up in order. The next four
/// steps are on their way while four are worked on.
template <int width, class S>
__global__ void __launch_bounds__(128, sizeof(S) <= 4 ? 6 : 1)
    conv_backward_kernel(const __grid_constant__ CausalConv<S> conv,
                         const __grid_constant__ ConvGradients<S> g, int steps) {
  using T = Arithmetic<S>;
  constexpr int taps = conv_fast_taps, before = taps - 1, ring = conv_ring, ahead = ring - taps;
  const int64_t c = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * width, b = blockIdx.z;
  const int time = static_cast<int>(conv.time);
  const int begin = static_cast<int>(blockIdx.y * blockDim.y + threadIdx.y) * steps;
  Vec<T, width> dw[taps], db;
  if (c < conv.channels && begin < time) {
    const int end = begin + steps < time ? begin + steps : time;
    const ConvLane<width, S> lane(conv, b, c);
    const S *from = lane.x + begin * lane.x_time, *dy = g.dy + b * g.dy_batch + begin * g.dy_time + c;
    int64_t next_dx = b * g.dx_batch + (begin - before) * g.dx_time + c;
    const int past = g.dx ? end + before : end, last = past < time ? past : time;
    Vec<T, width> x[ring], dz[ring];  // of begin + j at j modulo ring; dz of steps to come: dy
    const auto load = [&]<bool whole>(int j, int t) {
      const bool there = whole || t < last;
      x[j & (ring - 1)] = there ? load_as<T, width>(from) : Vec<T, width>{};
      dz[j & (ring - 1)] = there ? load_as<T, width>(dy) : Vec<T, width>{};
      from += lane.x_time, dy += g.dy_time;
    };
#pragma unroll
    for (int j = 1 - taps; j < ahead; ++j)
      if (j < 0)
        x[j & (ring - 1)] = lane.at(begin + j);
      else
        load.template operator()<false>(j, begin + j);
    // whole: nothing in it is left out or read behind `last`, and SiLU has followed
    const auto round = [&]<bool whole>(int first) {
#pragma unroll
      for (int j = 0; j < ring; ++j) {
        const int t = first + j;
        load.template operator()<whole>(j + ahead, t + ahead);
        const Vec<T, width> z = lane.z(x, j);
        Vec<T, width>& own = dz[j];
#pragma unroll
        for (int i = 0; i < width; ++i) own.x[i] *= whole ? conv.silu_slope(z.x[i]) : conv.slope(z.x[i]);
        if (whole || t < end) {
#pragma unroll
          for (int i = 0; i < width; ++i) {
            db.x[i] += own.x[i];
#pragma unroll
            for (int k = 0; k < taps; ++k) dw[k].x[i] += own.x[i] * x[(j + 1 + k - taps) & (ring - 1)].x[i];
          }
        }
        const int at = t - before;  // dz of at … at + 3 are here
        const int64_t to = next_dx;
        next_dx += g.dx_time;
        if (!g.dx || (!whole && (at < begin || at >= end))) continue;
        Vec<T, width> sum;
#pragma unroll
        for (int k = 0; k < taps; ++k)
#pragma unroll
          for (int i = 0; i < width; ++i) sum.x[i] += lane.w[k].x[i] * dz[(j - k) & (ring - 1)].x[i];
        store_as(g.dx + to, sum);
      }
    };
    for (int first = begin; first < past; first += ring)
      if (conv.silu && first > begin && first + ring <= end && first + ring + ahead <= last)
        round.template operator()<true>(first);
      else
        round.template operator()<false>(first);
  }
  if (!g.partial) return;
  Vec<T, width>* shared = dynamic_shared<Vec<T, width>>();  // [pieces, packs]
  const int64_t block = b * gridDim.y + blockIdx.y;
#pragma unroll
  for (int k = 0; k <= taps; ++k) {
    __syncthreads();
    shared[threadIdx.y * blockDim.x + threadIdx.x] = k < taps ? dw[k < taps ? k : 0] : db;
    __syncthreads();
    if (threadIdx.y > 0 || c >= conv.channels) continue;
    Vec<T, width> sum = shared[threadIdx.x];
    for (unsigned piece = 1; piece < blockDim.y; ++piece)
#pragma unroll
      for (int i = 0; i < width; ++i) sum.x[i] += shared[piece * blockDim.x + threadIdx.x].x[i];
    store_vec(g.partial + (block * (taps + 1) + k) * conv.channels + c, sum);
  }
}

// --- any number of taps: a thread an element ---

template <class T>
struct ConvForward {
  CausalConv<T> conv;
  T* y;
  ET_HD void operator()(int64_t at) const {
    const int64_t c = at % conv.channels, row = at / conv.channels;
    const T z = conv.z(row / conv.time, row % conv.time, c), activated = conv.silu ? z * sigmoid(z) : z;
    y[at] = c >= conv.elu.begin && c < conv.elu.end ? conv.map(activated) : activated;
  }
};
template <class T>
struct ConvBackwardX {
  CausalConv<T> conv;
  const T* dy;
  int64_t dy_batch, dy_time;
  T* dx;
  int64_t dx_batch, dx_time;
  ET_HD void operator()(int64_t at) const {
    const int64_t c = at % conv.channels, row = at / conv.channels, b = row / conv.time, t = row % conv.time;
    T sum = 0;
    for (int64_t k = 0; k < conv.taps; ++k) {
      const int64_t u = t + conv.taps - 1 - k;
      if (u >= conv.time) continue;
      const T dz = dy[b * dy_batch + u * dy_time + c] * conv.slope(conv.silu ? conv.z(b, u, c) : T(0));
      sum += conv.weight[c * conv.taps + k] * dz;
    }
    dx[b * dx_batch + t * dx_time + c] = sum;
  }
};
template <class T>
struct ConvBackwardParameters {  // a thread a (block of time, tap, channel); tap K is the bias
  CausalConv<T> conv;
  const T* dy;
  int64_t dy_batch, dy_time, blocks;
  T* partial;  // [B · blocks, K + 1, C]
  ET_HD void operator()(int64_t at) const {
    const int64_t c = at % conv.channels, k = at / conv.channels % (conv.taps + 1);
    const int64_t item = at / conv.channels / (conv.taps + 1), b = item / blocks;
    const int64_t begin = item % blocks * conv_time_block;
    const int64_t end = begin + conv_time_block < conv.time ? begin + conv_time_block : conv.time;
    T sum = 0;
    for (int64_t t = begin; t < end; ++t) {
      const T dz = dy[b * dy_batch + t * dy_time + c] * conv.slope(conv.silu ? conv.z(b, t, c) : T(0));
      const int64_t from = t - conv.taps + 1 + k;
      if (k == conv.taps)
        sum += dz;
      else if (from >= 0)
        sum += dz * conv.x[b * conv.x_batch + from * conv.x_time + c];
    }
    partial[at] = sum;
  }
};

/// run.operator()<width>(): packs of `most` elements where every address is a multiple of 16 bytes.
template <int most, class Run>
void with_conv_width(bool wide, Run&& run) {
  if (wide)
    run.template operator()<most>();
  else
    run.template operator()<1>();
}

template <class S>
bool conv_is_wide(const CausalConv<S>& conv) {
  constexpr int64_t width = vec_width<Arithmetic<S>>;
  return conv.channels % width == 0 && conv.x_batch % width == 0 && conv.x_time % width == 0 &&
         aligned_for_vec(conv.x);
}

template <class S>
void conv_forward_cuda(const Context& ctx, const CausalConv<S>& conv, S* y) {
  if (conv.batch * conv.time * conv.channels == 0) return;
  if constexpr (!std::is_same_v<S, BFloat16>)
    if (conv.taps != conv_fast_taps)
      return for_each_index(ctx, conv.batch * conv.time * conv.channels, ConvForward<S>{conv, y});
  with_conv_width<vec_width<Arithmetic<S>>>(conv_is_wide(conv) && aligned_for_vec(y), [&]<int width>() {
    const int64_t steps = conv_steps({conv.batch, conv.time, conv.channels}, conv_forward_width);
    const dim3 grid(blocks_for(conv.channels, 32 * width), blocks_for(conv.time, steps * conv_depth),
                    static_cast<unsigned>(conv.batch));
    auto* const kernel = conv.elu.begin < conv.elu.end ? conv_forward_kernel<width, true, S>
                                                       : conv_forward_kernel<width, false, S>;
    launch(ctx, kernel, grid, dim3(32, conv_depth), 0, conv, y, static_cast<int>(steps));
  });
}

/// `pieces`: of g.partial, conv_pieces(x).
template <class S>
void conv_backward_cuda(const Context& ctx, const CausalConv<S>& conv, const ConvGradients<S>& g,
                        [[maybe_unused]] int64_t pieces) {
  using T = Arithmetic<S>;
  const int64_t n = conv.batch * conv.time * conv.channels;
  if (n == 0) return;
  if constexpr (!std::is_same_v<S, BFloat16>)
    if (conv.taps != conv_fast_taps) {
      if (g.dx)
        for_each_index(ctx, n,
                       ConvBackwardX<S>{conv, g.dy, g.dy_batch, g.dy_time, g.dx, g.dx_batch, g.dx_time});
      if (g.partial)
        for_each_index(
            ctx, pieces * (conv.taps + 1) * conv.channels,
            ConvBackwardParameters<S>{conv, g.dy, g.dy_batch, g.dy_time, pieces / conv.batch, g.partial});
      return;
    }
  constexpr int64_t wide = vec_width<T>;
  const auto fits = [](const S* data, int64_t batch, int64_t time) {
    return !data || (aligned_for_vec(data) && batch % wide == 0 && time % wide == 0);
  };
  const bool all =
      conv_is_wide(conv) && fits(g.dy, g.dy_batch, g.dy_time) && fits(g.dx, g.dx_batch, g.dx_time);
  with_conv_width<conv_backward_width>(all, [&]<int width>() {
    const int64_t steps = conv_steps({conv.batch, conv.time, conv.channels}, conv_backward_width);
    const dim3 grid(blocks_for(conv.channels, 32 * width), blocks_for(conv.time, steps * conv_depth),
                    static_cast<unsigned>(conv.batch));
    launch(ctx, conv_backward_kernel<width, S>, grid, dim3(32, conv_depth),
           32 * conv_depth * width * sizeof(T), conv, g, static_cast<int>(steps));
  });
}
#endif

}  // namespace eigentrace::kernels
