// Causal depthwise convolution: z_t = Σ_k w_k x_{t−K+1+k} + b per channel (x = 0 before the start), y = z or
// SiLU(z).
//   dz = dy or dy SiLU′(z) with z recomputed,  dx_t = Σ_k w_k dz_{t+K−1−k},  dw_k = Σ dz_t x_{t−K+1+k},
//   db = Σ dz_t: sums over fixed blocks of time, then over the blocks in order.
#include <algorithm>

#include "tensor/dispatch.h"
#include "tensor/kernels.h"
#include "tensor/math.h"

namespace eigentrace::kernels {
namespace {

constexpr int64_t channel_strip =
    64;                              // channels of an item: taps and running sums stay in registers and cache
constexpr int64_t time_block = 512;  // steps whose weight gradient is one partial sum
constexpr int64_t time_tile = 32;    // steps whose dz are held at once

template <class T>
struct Conv {
  const T *x, *weight, *bias;
  int64_t batch, time, channels, taps, x_batch, x_time;
  bool silu;

  ET_HD T z(int64_t b, int64_t t, int64_t c) const {
    T sum = bias[c];
    for (int64_t k = t < taps - 1 ? taps - 1 - t : 0; k < taps; ++k)
      sum += weight[c * taps + k] * x[b * x_batch + (t - taps + 1 + k) * x_time + c];
    return sum;
  }
  ET_HD T slope(T z) const {  // SiLU′ or 1
    if (!silu) return T(1);
    const T s = sigmoid(z);
    return s * (T(1) + z * (T(1) - s));
  }
};

// --- CUDA: a thread an element ---

template <class T>
struct Forward {
  Conv<T> conv;
  T* y;
  ET_HD void operator()(int64_t at) const {
    const int64_t c = at % conv.channels, row = at / conv.channels;
    const T z = conv.z(row / conv.time, row % conv.time, c);
    y[at] = conv.silu ? z * sigmoid(z) : z;
  }
};
template <class T>
struct BackwardX {
  Conv<T> conv;
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
struct BackwardParameters {  // a thread a (block of time, tap, channel); tap K is the bias
  Conv<T> conv;
  const T* dy;
  int64_t dy_batch, dy_time, blocks;
  T* partial;  // [B · blocks, K + 1, C]
  ET_HD void operator()(int64_t at) const {
    const int64_t c = at % conv.channels, k = at / conv.channels % (conv.taps + 1);
    const int64_t item = at / conv.channels / (conv.taps + 1), b = item / blocks;
    const int64_t begin = item % blocks * time_block;
    const int64_t end = begin + time_block < conv.time ? begin + time_block : conv.time;
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
template <class T>
struct GatherParameters {  // dw[c, k], db[c] from their sums [K + 1, C]
  const T* sums;
  T *dweight, *dbias;
  int64_t channels, taps;
  ET_HD void operator()(int64_t k, int64_t c) const {
    if (k < taps && dweight) dweight[c * taps + k] = sums[k * channels + c];
    if (k == taps && dbias) dbias[c] = sums[k * channels + c];
  }
};

// --- CPU: an item is a strip of channels over a block of time. whole_strips: every strip is full, so that
// the inner loops have a fixed length ---

/// z of n channels from `c` at step t; w: the strip's taps as [K, strip].
template <class T>
ET_HD void pre_activation(const Conv<T>& conv, const T* w, int64_t b, int64_t t, int64_t c, int64_t n, T* z) {
  const T* bias = conv.bias + c;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) z[i] = bias[i];
  for (int64_t k = std::max<int64_t>(0, conv.taps - 1 - t); k < conv.taps; ++k) {
    const T* x = conv.x + b * conv.x_batch + (t - conv.taps + 1 + k) * conv.x_time + c;
    const T* tap = w + k * channel_strip;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) z[i] += tap[i] * x[i];
  }
}

template <class T>
std::vector<T> strip_taps(const Conv<T>& conv, int64_t c, int64_t n) {
  std::vector<T> w(static_cast<size_t>(conv.taps * channel_strip));
  for (int64_t k = 0; k < conv.taps; ++k)
    for (int64_t i = 0; i < n; ++i)
      w[static_cast<size_t>(k * channel_strip + i)] = conv.weight[(c + i) * conv.taps + k];
  return w;
}

template <bool whole_strips, class T>
void forward_cpu(const Conv<T>& conv, T* y) {
  const int64_t strips = (conv.channels + channel_strip - 1) / channel_strip;
  const int64_t blocks = (conv.time + time_block - 1) / time_block;
  parallel_rows(conv.batch * blocks * strips, [&](int64_t item) {
    const int64_t c = item % strips * channel_strip, b = item / strips / blocks;
    const int64_t n = whole_strips ? channel_strip : std::min(channel_strip, conv.channels - c);
    const int64_t begin = item / strips % blocks * time_block;
    const std::vector<T> w = strip_taps(conv, c, n);
    T z[channel_strip];
    for (int64_t t = begin; t < std::min(begin + time_block, conv.time); ++t) {
      pre_activation(conv, w.data(), b, t, c, n, z);
      T* to = y + (b * conv.time + t) * conv.channels + c;
      if (conv.silu) {
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) to[i] = z[i] * sigmoid(z[i]);
      } else {
        std::copy(z, z + n, to);
      }
    }
  });
}

template <class T>
struct Gradients {
  const T* dy;
  int64_t dy_batch, dy_time;
  T* dx;  // null: not wanted
  int64_t dx_batch, dx_time;
  T* partial;  // [B · blocks, K + 1, C] or null
};

template <bool whole_strips, class T>
void backward_cpu(const Conv<T>& conv, const Gradients<T>& g) {
  const int64_t strips = (conv.channels + channel_strip - 1) / channel_strip;
  const int64_t blocks = (conv.time + time_block - 1) / time_block, taps = conv.taps;
  parallel_rows(conv.batch * blocks * strips, [&](int64_t item) {
    const int64_t c = item % strips * channel_strip, b = item / strips / blocks;
    const int64_t n = whole_strips ? channel_strip : std::min(channel_strip, conv.channels - c);
    const int64_t begin = item / strips % blocks * time_block, end = std::min(begin + time_block, conv.time);
    const std::vector<T> w = strip_taps(conv, c, n);
    std::vector<T> dz(static_cast<size_t>((time_tile + taps) * channel_strip));
    std::vector<T> sums(static_cast<size_t>((taps + 1) * channel_strip), T(0));
    const auto dz_row = [&](int64_t i) { return dz.data() + i * channel_strip; };
    const auto make_dz = [&](int64_t t, T* to) {
      const T* dy = g.dy + b * g.dy_batch + t * g.dy_time + c;
      if (!conv.silu) {
        std::copy(dy, dy + n, to);
        return;
      }
      T z[channel_strip];
      pre_activation(conv, w.data(), b, t, c, n, z);
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) to[i] = dy[i] * conv.slope(z[i]);
    };
    int64_t made = begin;  // dz rows of steps tile … made − 1 are in the buffer, from its row 0
    for (int64_t tile = begin; tile < end; tile += time_tile) {
      const int64_t tile_end = std::min(tile + time_tile, end);
      const int64_t needed = std::min(tile_end + (g.dx ? taps - 1 : 0), conv.time);
      for (; made < needed; ++made) make_dz(made, dz_row(made - tile));
      for (int64_t t = tile; t < tile_end; ++t) {
        if (g.dx) {
          T* dx = g.dx + b * g.dx_batch + t * g.dx_time + c;
          T sum[channel_strip] = {};
          for (int64_t k = taps - 1; k >= 0 && t + taps - 1 - k < conv.time; --k) {
            const T *tap = w.data() + k * channel_strip, *row = dz_row(t + taps - 1 - k - tile);
#pragma omp simd
            for (int64_t i = 0; i < n; ++i) sum[i] += tap[i] * row[i];
          }
          std::copy(sum, sum + n, dx);
        }
        if (g.partial) {
          const T* row = dz_row(t - tile);
          for (int64_t k = std::max<int64_t>(0, taps - 1 - t); k < taps; ++k) {
            const T* x = conv.x + b * conv.x_batch + (t - taps + 1 + k) * conv.x_time + c;
            T* sum = sums.data() + k * channel_strip;
#pragma omp simd
            for (int64_t i = 0; i < n; ++i) sum[i] += row[i] * x[i];
          }
          T* sum = sums.data() + taps * channel_strip;
#pragma omp simd
          for (int64_t i = 0; i < n; ++i) sum[i] += row[i];
        }
      }
      for (int64_t t = tile_end; t < made; ++t)  // what the next tile has already
        std::copy(dz_row(t - tile), dz_row(t - tile) + n, dz_row(t - tile_end));
    }
    if (!g.partial) return;
    for (int64_t k = 0; k <= taps; ++k)
      std::copy_n(sums.data() + k * channel_strip, n,
                  g.partial + (item / strips * (taps + 1) + k) * conv.channels + c);
  });
}

template <class T>
Conv<T> conv_of(const Tensor& x, const Tensor& weight, const Tensor& bias, bool silu) {
  return {x.data<T>(), weight.data<T>(), bias.data<T>(), x.dim(0),    x.dim(1),
          x.dim(2),    weight.dim(2),    x.stride(0),    x.stride(1), silu};
}

void check(const char* kernel, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y) {
  const bool fits = x.rank() == 3 && weight.rank() == 3 && weight.dim(0) == x.dim(2) && weight.dim(1) == 1 &&
                    weight.dim(2) > 0 && weight.contiguous() && bias.contiguous() &&
                    bias.shape() == Shape{x.dim(2)} && y.shape() == x.shape();
  const auto dense = [](const Tensor& t) { return t.dim(-1) == 1 || t.stride(-1) == 1; };
  if (!fits || !dense(x) || !dense(y))
    fail(std::string(kernel) + ": x [B, T, C] with a dense last axis, weight [C, 1, K], bias [C] expected, " +
         "found " + to_string(x) + ", " + to_string(weight) + ", " + to_string(bias) + ", y or dy " +
         to_string(y));
}

}  // namespace

void causal_conv1d(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias, bool silu,
                   Tensor& y) {
  check("causal_conv1d", x, weight, bias, y);
  if (!y.contiguous()) fail("causal_conv1d: a contiguous y expected, found " + to_string(y));
  dispatch_floating(ctx, "causal_conv1d", x.dtype(), [&]<class T>() {
    const Conv<T> conv = conv_of<T>(x, weight, bias, silu);
    if (ctx.device().is_cuda())
      for_each_index(ctx, x.numel(), Forward<T>{conv, y.data<T>()});
    else if (conv.channels % channel_strip == 0)
      forward_cpu<true>(conv, y.data<T>());
    else
      forward_cpu<false>(conv, y.data<T>());
  });
}

void causal_conv1d_backward(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias,
                            bool silu, const Tensor& dy, Tensor& dx, Tensor& dweight, Tensor& dbias) {
  check("causal_conv1d_backward", x, weight, bias, dy);
  if (dx.defined()) check("causal_conv1d_backward", x, weight, bias, dx);
  const int64_t taps = weight.dim(2), channels = x.dim(2);
  const int64_t blocks = (x.dim(1) + time_block - 1) / time_block;
  const bool parameters = dweight.defined() || dbias.defined();
  Tensor partial, sums;
  if (parameters) {
    partial = ctx.empty({x.dim(0) * blocks, (taps + 1) * channels}, x.dtype());
    sums = ctx.empty({(taps + 1) * channels}, x.dtype());
  }
  dispatch_floating(ctx, "causal_conv1d_backward", x.dtype(), [&]<class T>() {
    const Conv<T> conv = conv_of<T>(x, weight, bias, silu);
    T* to = dx.defined() ? dx.data<T>() : nullptr;
    const int64_t dx_batch = to ? dx.stride(0) : 0, dx_time = to ? dx.stride(1) : 0;
    T* part = parameters ? partial.data<T>() : nullptr;
    if (ctx.device().is_cuda()) {
      if (to)
        for_each_index(ctx, x.numel(),
                       BackwardX<T>{conv, dy.data<T>(), dy.stride(0), dy.stride(1), to, dx_batch, dx_time});
      if (part)
        for_each_index(ctx, partial.numel(),
                       BackwardParameters<T>{conv, dy.data<T>(), dy.stride(0), dy.stride(1), blocks, part});
    } else {
      const Gradients<T> g{dy.data<T>(), dy.stride(0), dy.stride(1), to, dx_batch, dx_time, part};
      if (conv.channels % channel_strip == 0)
        backward_cpu<true>(conv, g);
      else
        backward_cpu<false>(conv, g);
    }
  });
  if (!parameters) return;
  sum(ctx, partial, 0, sums);
  dispatch_floating(ctx, "causal_conv1d_backward", x.dtype(), [&]<class T>() {
    for_each_in_rows(ctx, taps + 1, channels,
                     GatherParameters<T>{sums.data<T>(), dweight.defined() ? dweight.data<T>() : nullptr,
                                         dbias.defined() ? dbias.data<T>() : nullptr, channels, taps});
  });
}

}  // namespace eigentrace::kernels
