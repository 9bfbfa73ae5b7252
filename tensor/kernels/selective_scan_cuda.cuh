#pragma once
// The selective scan on CUDA. A block owns 32 channels of one sequence: 128 threads are 32 channels × 4 lanes
// of 4 states; more than 16 states are passes over time, one after the other. Operands pass through shared
// memory in segments of 16 steps; the state before each segment is kept (S/16 times the bytes of x), so that
// the backward pass recomputes a segment's states in registers, 16 steps at once.
//
// Sums over channels (dB, dC): eight channels of a warp by exchanges that halve the values (7 shuffles for 8
// sums), the four warps in order, the blocks in order by a kernel of its own.
//
// One exponential a state and step forward (MUFU: 16 a clock and SM), two backward.
#include "tensor/dispatch.h"
#include "tensor/math.h"

namespace eigentrace::kernels {
namespace {

constexpr int segment = 16, block_channels = 32, pass_states = 16, own_states = 4;

template <class T>
struct SelectiveArguments {
  Rows<T> x, delta, b, c, y;  // y: y forward, dy backward
  const T *a_log, *d;
  T* boundary;  // [B, segments, S, E]; null forward: not wanted
  int64_t time, channels, states, segments;
  Rows<T> dx, ddelta;  // without data: not wanted
  T *db, *dc;          // [blocks of channels, B, T, S]
  double *da, *dd;     // [B, S, E], [B, E]
  int64_t batch;
};

/// Columns from..from+width of 16 rows of one sequence into shared memory [16][width], zero outside.
template <class T>
__device__ void load_segment(const Rows<T>& x, int64_t first_row, int64_t rows, int64_t from, int64_t columns,
                             int width, T* to) {
  for (int i = static_cast<int>(threadIdx.x); i < segment * width; i += 128) {
    const int row = i / width, column = i % width;
    to[i] =
        row < rows && from + column < columns ? x.data[(first_row + row) * x.stride + from + column] : T(0);
  }
}
/// The same back, added to what is there if `add`.
template <class T>
__device__ void store_segment(const Rows<T>& x, int64_t first_row, int64_t rows, int64_t from,
                              int64_t columns, bool add, const T* values) {
  for (int i = static_cast<int>(threadIdx.x); i < segment * block_channels; i += 128) {
    const int row = i / block_channels, column = i % block_channels;
    if (row >= rows || from + column >= columns) continue;
    T* to = x.data + (first_row + row) * x.stride + from + column;
    *to = add ? *to + values[i] : values[i];
  }
}
/// Σ over the four lanes of a channel, to all of them.
template <class T>
__device__ T sum_of_channel(T v) {
  v += __shfl_xor_sync(0xFFFFFFFFu, v, 1);
  return v + __shfl_xor_sync(0xFFFFFFFFu, v, 2);
}
/// A = −exp(A_log) of this thread's states; 0 (nothing happens) for those that do not exist.
template <class T>
__device__ void load_decay(const SelectiveArguments<T>& o, int64_t channel, int64_t first_state, T* a) {
  for (int k = 0; k < own_states; ++k)
    a[k] = channel < o.channels && first_state + k < o.states
               ? static_cast<T>(-exp(static_cast<double>(o.a_log[channel * o.states + first_state + k])))
               : T(0);
}

template <class T>
__global__ void __launch_bounds__(128) selective_scan_kernel(SelectiveArguments<T> o) {
  __shared__ T delta[segment][block_channels], x[segment][block_channels], y[segment][block_channels];
  __shared__ T bs[segment][pass_states], cs[segment][pass_states];
  const int lane = static_cast<int>(threadIdx.x) % 4, c = static_cast<int>(threadIdx.x) / 4;
  const int64_t from = static_cast<int64_t>(blockIdx.x) * block_channels, channel = from + c, b = blockIdx.y;
  const T skip = channel < o.channels ? o.d[channel] : T(0);
  for (int64_t pass = 0; pass < o.states; pass += pass_states) {
    const int64_t first_state = pass + lane * own_states;
    T a[own_states], h[own_states] = {};
    load_decay(o, channel, first_state, a);
    for (int64_t g = 0; g < o.segments; ++g) {
      const int64_t row = b * o.time + g * segment, rows = o.time - g * segment;
      if (o.boundary && channel < o.channels)
        for (int k = 0; k < own_states; ++k)
          if (first_state + k < o.states)
            o.boundary[((b * o.segments + g) * o.states + first_state + k) * o.channels + channel] = h[k];
      load_segment(o.delta, row, rows, from, o.channels, block_channels, &delta[0][0]);
      load_segment(o.x, row, rows, from, o.channels, block_channels, &x[0][0]);
      load_segment(o.b, row, rows, pass, o.states, pass_states, &bs[0][0]);
      load_segment(o.c, row, rows, pass, o.states, pass_states, &cs[0][0]);
      __syncthreads();
#pragma unroll 4
      for (int i = 0; i < segment; ++i) {
        const T step = delta[i][c], input = step * x[i][c];
        T sum = 0;
#pragma unroll
        for (int k = 0; k < own_states; ++k) {
          h[k] = fast_exp(step * a[k]) * h[k] + input * bs[i][lane * own_states + k];
          sum += h[k] * cs[i][lane * own_states + k];
        }
        sum = sum_of_channel(sum);
        if (lane == 0) y[i][c] = pass == 0 ? sum + skip * x[i][c] : sum;
      }
      __syncthreads();
      store_segment(o.y, row, rows, from, o.channels, pass > 0, &y[0][0]);
      __syncthreads();
    }
  }
}

/// v[0] of lane (c, ·) becomes Σ over the warp's eight channels of value number (bit 2, 3, 4 of the lane).
template <class T>
__device__ void sum_over_channels(T (&v)[8]) {
  const unsigned lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 4, bit = 16; half > 0; half /= 2, bit /= 2) {
    const bool upper = lane & static_cast<unsigned>(bit);
#pragma unroll
    for (int k = 0; k < half; ++k) {
      const T keep = upper ? v[k + half] : v[k], send = upper ? v[k] : v[k + half];
      v[k] = keep + __shfl_xor_sync(0xFFFFFFFFu, send, bit);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(128) selective_scan_backward_kernel(SelectiveArguments<T> o) {
  __shared__ T delta[segment][block_channels], x[segment][block_channels], dout[segment][block_channels];
  __shared__ T dx[segment][block_channels], ddelta[segment][block_channels];
  __shared__ T bs[segment][pass_states], cs[segment][pass_states], parts[segment][4][32];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 4, c = thread / 4;
  const int64_t from = static_cast<int64_t>(blockIdx.x) * block_channels, channel = from + c, b = blockIdx.y;
  const bool live = channel < o.channels;
  const T skip = live ? o.d[channel] : T(0);
  for (int64_t pass = 0; pass < o.states; pass += pass_states) {
    const int64_t first_state = pass + lane * own_states;
    T a[own_states], carry[own_states] = {};
    double sum_a[own_states] = {}, sum_d = 0;
    load_decay(o, channel, first_state, a);
    for (int64_t g = o.segments - 1; g >= 0; --g) {
      const int64_t row = b * o.time + g * segment, rows = o.time - g * segment;
      load_segment(o.delta, row, rows, from, o.channels, block_channels, &delta[0][0]);
      load_segment(o.x, row, rows, from, o.channels, block_channels, &x[0][0]);
      load_segment(o.y, row, rows, from, o.channels, block_channels, &dout[0][0]);
      load_segment(o.b, row, rows, pass, o.states, pass_states, &bs[0][0]);
      load_segment(o.c, row, rows, pass, o.states, pass_states, &cs[0][0]);
      T h[own_states], before[segment][own_states], part_a[own_states] = {}, part_d = 0;
#pragma unroll
      for (int k = 0; k < own_states; ++k)
        h[k] = live && first_state + k < o.states
                   ? o.boundary[((b * o.segments + g) * o.states + first_state + k) * o.channels + channel]
                   : T(0);
      __syncthreads();
#pragma unroll
      for (int i = 0; i < segment; ++i) {
        const T step = delta[i][c], input = step * x[i][c];
#pragma unroll
        for (int k = 0; k < own_states; ++k) {
          before[i][k] = h[k];
          h[k] = fast_exp(step * a[k]) * h[k] + input * bs[i][lane * own_states + k];
        }
      }
#pragma unroll
      for (int i = segment - 1; i >= 0; --i) {
        const T step = delta[i][c], in = x[i][c], out = dout[i][c], input = step * in;
        T g_b = 0, g_a = 0, sums[8];
#pragma unroll
        for (int k = 0; k < own_states; ++k) {
          const T bk = bs[i][lane * own_states + k], decay = fast_exp(step * a[k]);
          const T gradient = carry[k] + out * cs[i][lane * own_states + k], decayed = decay * before[i][k];
          sums[k] = gradient * input;
          sums[own_states + k] = out * (decayed + input * bk);
          g_b += gradient * bk;
          const T through = gradient * decayed;
          g_a += through * a[k];
          part_a[k] += through * step;
          carry[k] = gradient * decay;
        }
        sum_over_channels(sums);
        parts[i][thread / 32][thread % 32] = sums[0];
        g_b = sum_of_channel(g_b), g_a = sum_of_channel(g_a);
        part_d += out * in;
        if (lane == 0) {
          dx[i][c] = (pass == 0 ? skip * out : T(0)) + step * g_b;
          ddelta[i][c] = in * g_b + g_a;
        }
      }
#pragma unroll
      for (int k = 0; k < own_states; ++k) sum_a[k] += static_cast<double>(part_a[k]);
      sum_d += static_cast<double>(part_d);
      __syncthreads();
      if (o.dx.data) store_segment(o.dx, row, rows, from, o.channels, pass > 0, &dx[0][0]);
      if (o.ddelta.data) store_segment(o.ddelta, row, rows, from, o.channels, pass > 0, &ddelta[0][0]);
      // lane (value v of 8: dB or dC of a state) (which of the four lanes): bits 4 3 2 | 1 0
      for (int at = thread; at < segment * 32; at += 128) {
        const int i = at / 32, l = at % 32, value = (l >> 4 & 1) * 4 + (l >> 3 & 1) * 2 + (l >> 2 & 1);
        const int64_t state = pass + l % 4 * own_states + value % own_states;
        if (i >= rows || state >= o.states) continue;
        T sum = parts[i][0][l];
        for (int w = 1; w < 4; ++w) sum += parts[i][w][l];
        (value < own_states
             ? o.db
             : o.dc)[((blockIdx.x * o.batch + b) * o.time + g * segment + i) * o.states + state] = sum;
      }
      __syncthreads();
    }
    for (int k = 0; k < own_states; ++k)
      if (live && first_state + k < o.states)
        o.da[(b * o.states + first_state + k) * o.channels + channel] = sum_a[k];
    if (live && lane == 0 && pass == 0) o.dd[b * o.channels + channel] = sum_d;
  }
}

/// to[row, s] = Σ over blocks of channels, in their order.
template <class T>
struct SumOfBlocks {
  const T* parts;
  Rows<T> to;
  int64_t blocks, rows, states;
  ET_HD void operator()(int64_t i) const {
    T sum = 0;
    for (int64_t k = 0; k < blocks; ++k) sum += parts[k * rows * states + i];
    to.data[i / states * to.stride + i % states] = sum;
  }
};

/// dA_log [E,S] = A Σ_b, dD [E] = Σ_b
template <class T>
struct SumOfBatch {
  const double *da, *dd;
  const T* a_log;
  T *da_log, *out_d;  // null: not wanted
  int64_t batch, channels, states;
  ET_HD void operator()(int64_t i) const {
    const int64_t c = i / states, s = i % states;
    if (da_log) {
      double sum = 0;
      for (int64_t b = 0; b < batch; ++b) sum += da[(b * states + s) * channels + c];
      da_log[i] = static_cast<T>(-sum * exp(static_cast<double>(a_log[i])));
    }
    if (out_d && s == 0) {
      double sum = 0;
      for (int64_t b = 0; b < batch; ++b) sum += dd[b * channels + c];
      out_d[c] = static_cast<T>(sum);
    }
  }
};

template <class T>
SelectiveArguments<T> selective_arguments(const SelectiveScan& in) {
  SelectiveArguments<T> o{};
  o.x = rows_of<T>(in.x, "selective_scan: x"), o.delta = rows_of<T>(in.delta, "selective_scan: delta");
  o.b = rows_of<T>(in.b, "selective_scan: B"), o.c = rows_of<T>(in.c, "selective_scan: C");
  o.a_log = in.a_log.data<T>(), o.d = in.d.data<T>();
  o.batch = in.x.dim(0), o.time = in.x.dim(1), o.channels = in.x.dim(2), o.states = in.b.dim(2);
  o.segments = (o.time + segment - 1) / segment;
  return o;
}

Shape selective_scan_boundary_cuda(const Tensor& x, const Tensor& b) {
  return {x.dim(0), (x.dim(1) + segment - 1) / segment, b.dim(2), x.dim(2)};
}

void selective_scan_cuda(Context& ctx, const SelectiveScan& in, Tensor& y, Tensor& boundary) {
  dispatch_floating(ctx, "selective_scan", in.x.dtype(), [&]<class T>() {
    SelectiveArguments<T> o = selective_arguments<T>(in);
    o.y = rows_of<T>(y, "selective_scan: y");
    if (boundary.defined()) o.boundary = boundary.data<T>();
    if (in.x.numel() == 0) return;
    launch(ctx, selective_scan_kernel<T>,
           dim3(blocks_for(o.channels, block_channels), static_cast<unsigned>(o.batch)), 128, 0, o);
  });
}

void selective_scan_backward_cuda(Context& ctx, const SelectiveScan& in, const Tensor& boundary,
                                  const Tensor& dy, SelectiveScan& gradient) {
  const int64_t batch = in.x.dim(0), time = in.x.dim(1), channels = in.x.dim(2), states = in.b.dim(2);
  const int64_t blocks = (channels + block_channels - 1) / block_channels;
  const Tensor db = ctx.empty({blocks, batch, time, states}, in.x.dtype()), dc = ctx.empty_like(db);
  const Tensor da = ctx.empty({batch, states, channels}, DType::f64);
  const Tensor dd = ctx.empty({batch, channels}, DType::f64);
  dispatch_floating(ctx, "selective_scan_backward", in.x.dtype(), [&]<class T>() {
    if (in.x.numel() == 0) return;
    SelectiveArguments<T> o = selective_arguments<T>(in);
    o.y = rows_of<T>(dy, "selective_scan_backward: dy");
    o.boundary = boundary.data<T>();
    if (gradient.x.defined()) o.dx = rows_of<T>(gradient.x, "selective_scan_backward: dx");
    if (gradient.delta.defined()) o.ddelta = rows_of<T>(gradient.delta, "selective_scan_backward: ddelta");
    o.db = db.data<T>(), o.dc = dc.data<T>(), o.da = da.data<double>(), o.dd = dd.data<double>();
    launch(ctx, selective_scan_backward_kernel<T>,
           dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(batch)), 128, 0, o);
    const auto sum = [&](const Tensor& to, const T* parts) {
      if (to.defined())
        for_each_index(ctx, batch * time * states,
                       SumOfBlocks<T>{parts, rows_of<T>(to, "selective_scan_backward: dB, dC"), blocks,
                                      batch * time, states});
    };
    sum(gradient.b, o.db), sum(gradient.c, o.dc);
    if (gradient.a_log.defined() || gradient.d.defined())
      for_each_index(
          ctx, channels * states,
          SumOfBatch<T>{o.da, o.dd, o.a_log, gradient.a_log.defined() ? gradient.a_log.data<T>() : nullptr,
                        gradient.d.defined() ? gradient.d.data<T>() : nullptr, batch, channels, states});
  });
}

}  // namespace
}  // namespace eigentrace::kernels
