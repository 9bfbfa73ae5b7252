// Causal depthwise convolution: z_t = Σ_k w_k x_{t−K+1+k} + b per channel (x = 0 before the start), y = z or
// SiLU(z); forward, in a range of channels, elu + 1 of that.
//   dz = dy or dy SiLU′(z) with z recomputed,  dx_t = Σ_k w_k dz_{t+K−1−k},  dw_k = Σ dz_t x_{t−K+1+k},
//   db = Σ dz_t: sums over fixed blocks of time, then over the blocks in order.
// The CUDA bodies are in causal_conv1d_cuda.cuh.
#include <algorithm>

#include "tensor/dispatch.h"
#include "tensor/elements.h"
#include "tensor/float32_copies.h"
#include "tensor/kernels/causal_conv1d_cuda.cuh"
#include "tensor/math.h"

namespace eigentrace::kernels {
namespace {

constexpr int64_t channel_strip =
    64;  // channels of an item: taps and running sums stay in registers and cache
constexpr int64_t time_block = conv_time_block;
constexpr int64_t time_tile = 32;  // steps whose dz are held at once

// --- CPU: an item is a strip of channels over a block of time. whole_strips: every strip is full, so that
// the inner loops have a fixed length ---

/// z of n channels from `c` at step t; w: the strip's taps as [K, strip].
template <class T>
ET_HD void pre_activation(const CausalConv<T>& conv, const T* w, int64_t b, int64_t t, int64_t c, int64_t n,
                          T* z) {
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
std::vector<T> strip_taps(const CausalConv<T>& conv, int64_t c, int64_t n) {
  std::vector<T> w(static_cast<size_t>(conv.taps * channel_strip));
  for (int64_t k = 0; k < conv.taps; ++k)
    for (int64_t i = 0; i < n; ++i)
      w[static_cast<size_t>(k * channel_strip + i)] = conv.weight[(c + i) * conv.taps + k];
  return w;
}

template <bool whole_strips, class T>
void forward_cpu(const CausalConv<T>& conv, T* y) {
  const int64_t strips = (conv.channels + channel_strip - 1) / channel_strip;
  const int64_t blocks = (conv.time + time_block - 1) / time_block;
  parallel_rows(conv.batch * blocks * strips, [&](int64_t item) {
    const int64_t c = item % strips * channel_strip, b = item / strips / blocks;
    const int64_t n = whole_strips ? channel_strip : std::min(channel_strip, conv.channels - c);
    const int64_t begin = item / strips % blocks * time_block;
    const int64_t map_begin = std::clamp<int64_t>(conv.elu.begin - c, 0, n),
                  map_end = std::clamp<int64_t>(conv.elu.end - c, 0, n);
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
#pragma omp simd
      for (int64_t i = map_begin; i < map_end; ++i) to[i] = conv.map(to[i]);
    }
  });
}

template <bool whole_strips, class T>
void backward_cpu(const CausalConv<T>& conv, const ConvGradients<T>& g) {
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

template <class S>
CausalConv<S> conv_of(const Tensor& x, const Tensor& weight, const Tensor& bias, bool silu,
                      ChannelRange elu = {}) {
  using T = Arithmetic<S>;
  return {x.data<S>(),   weight.data<T>(), bias.data<T>(), x.dim(0), x.dim(1), x.dim(2),
          weight.dim(2), x.stride(0),      x.stride(1),    silu,     elu};
}

struct EluBackwardOf {
  template <class T>
  ET_HD T operator()(T y, T dy) const {
    return y < T(1) ? dy * y : dy;
  }
};

/// True iff bf16 rows have a body of their own.
bool native_taps(const Tensor& weight) { return weight.rank() == 3 && weight.dim(2) == conv_fast_taps; }

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
  causal_conv1d_elu(ctx, x, weight, bias, silu, {}, y);
}

void causal_conv1d_elu(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias, bool silu,
                       ChannelRange elu, Tensor& y) {
  if (!native_taps(weight) && in_float32(ctx, causal_conv1d_elu, x, weight, bias, silu, elu, y)) return;
  check("causal_conv1d", x, weight, bias, y);
  if (elu.begin < 0 || elu.begin > elu.end || elu.end > x.dim(2))
    fail("causal_conv1d: elu: channels begin ≤ end of " + std::to_string(x.dim(2)) + " expected, found " +
         std::to_string(elu.begin) + " and " + std::to_string(elu.end));
  if (!y.contiguous()) fail("causal_conv1d: a contiguous y expected, found " + to_string(y));
  dispatch_stored(ctx, "causal_conv1d", x.dtype(), [&]<class S>() {
    const CausalConv<S> conv = conv_of<S>(x, weight, bias, silu, elu);
#ifdef EIGENTRACE_WITH_CUDA
    if (ctx.device().is_cuda()) return conv_forward_cuda(ctx, conv, y.data<S>());
#endif
    require_cpu(ctx, "causal_conv1d");
    if constexpr (!std::is_same_v<S, BFloat16>) {
      if (conv.channels % channel_strip == 0)
        forward_cpu<true>(conv, y.data<S>());
      else
        forward_cpu<false>(conv, y.data<S>());
    }
  });
}

void elu_backward_of(Context& ctx, const Tensor& y, const Tensor& dy, Tensor& dx) {
  if (!(y.shape() == dy.shape() && y.shape() == dx.shape()))
    fail("elu_backward_of: y is " + to_string(y) + ", dy " + to_string(dy) + ", dx " + to_string(dx));
  dispatch_stored(ctx, "elu_backward_of", y.dtype(), [&]<class T>() {
    map_elements<T>(ctx, EluBackwardOf{}, std::array{y, dy}, dx);
  });
}

void causal_conv1d_backward(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias,
                            bool silu, const Tensor& dy, Tensor& dx, Tensor& dweight, Tensor& dbias) {
  if (!native_taps(weight) &&
      in_float32(ctx, causal_conv1d_backward, x, weight, bias, silu, dy, dx, dweight, dbias))
    return;
  check("causal_conv1d_backward", x, weight, bias, dy);
  if (dx.defined()) check("causal_conv1d_backward", x, weight, bias, dx);
  const int64_t taps = weight.dim(2), channels = x.dim(2);
  const int64_t blocks = ctx.device().is_cuda() ? conv_pieces(x.shape(), taps)
                                                : x.dim(0) * ((x.dim(1) + time_block - 1) / time_block);
  const bool parameters = dweight.defined() || dbias.defined();
  Tensor partial, sums;
  if (parameters) {
    partial = ctx.empty({blocks, (taps + 1) * channels}, weight.dtype());
    if (!ctx.device().is_cuda()) sums = ctx.empty({(taps + 1) * channels}, x.dtype());
  }
  dispatch_stored(ctx, "causal_conv1d_backward", x.dtype(), [&]<class S>() {
    using T = Arithmetic<S>;
    const CausalConv<S> conv = conv_of<S>(x, weight, bias, silu);
    S* to = dx.defined() ? dx.data<S>() : nullptr;
    const ConvGradients<S> g{dy.data<S>(),
                             dy.stride(0),
                             dy.stride(1),
                             to,
                             to ? dx.stride(0) : 0,
                             to ? dx.stride(1) : 0,
                             parameters ? partial.data<T>() : nullptr};
#ifdef EIGENTRACE_WITH_CUDA
    if (ctx.device().is_cuda()) {
      conv_backward_cuda(ctx, conv, g, blocks);
      const ConvSink<T> sink{dweight.defined() ? dweight.data<T>() : nullptr,
                             dbias.defined() ? dbias.data<T>() : nullptr, channels, taps};
      if (parameters) sum_rows(ctx, g.partial, 1, blocks, (taps + 1) * channels, sink);
      return;
    }
#endif
    require_cpu(ctx, "causal_conv1d_backward");
    if constexpr (!std::is_same_v<S, BFloat16>) {
      if (conv.channels % channel_strip == 0)
        backward_cpu<true>(conv, g);
      else
        backward_cpu<false>(conv, g);
    }
  });
  if (!sums.defined()) return;
  sum(ctx, partial, 0, sums);
  dispatch_floating(ctx, "causal_conv1d_backward", x.dtype(), [&]<class T>() {
    const T* all = sums.data<T>();
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t k = 0; k < taps && dweight.defined(); ++k)
        dweight.data<T>()[c * taps + k] = all[k * channels + c];
      if (dbias.defined()) dbias.data<T>()[c] = all[taps * channels + c];
    }
  });
}

}  // namespace eigentrace::kernels
