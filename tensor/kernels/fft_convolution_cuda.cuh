#pragma once
// The convolution on CUDA in float32 for sequences up to 4096 (M = 1024 … 8192, at least twice their length):
// a block takes a pair of sequences of C = 8192/M neighbouring channels straight into registers, transforms,
// multiplies by K̂, transforms back and writes; the backward pass does the same to dy with conj(K̂) and keeps Σ
// conj(Z) V in registers over the pairs of its part of the batch. Sequences of 513 to 1024 where shared
// memory allows: warp_convolution.cuh. Other lengths and float64: long_convolution.cuh.
//
// Bytes: u and y once forward, u, dy and du once backward; K̂ (M D·8 bytes) stays in L2.
//   MQAR   B 64, T 512,  D 128: M 1024, 512 blocks, 33.5 MB: 8 µs;  backward 50 MB: 12 µs, 128 blocks
//   CIFAR  B 50, T 1024, D 512: M 2048, 3200 blocks, 210 MB: 50 µs; backward 315 MB: 75 µs, 128 blocks
// Operations, 700 a thread and transform: MQAR 2·512 transforms of 16 warps, 13 µs forward, 3·512: 20 µs
// backward at four instructions a clock; CIFAR 6400: 80 µs, 9600: 120 µs. What binds is L2: a tile of four
// channels takes half of every sector it touches and K̂ comes again with every pair, 26.6e6 sectors of CIFAR's
// forward pass where 6.6e6 hold u and y (155 µs of 192 at 5.5 TB/s).
#include "tensor/kernels/long_convolution.cuh"
#include "tensor/kernels/register_fft.cuh"
#include "tensor/kernels/warp_convolution.cuh"

namespace eigentrace::kernels {
namespace {

constexpr int64_t convolution_blocks = 132;  // of the backward pass, if the batch has enough pairs

struct FastConvolution {
  Rows<float> u, dy, out;  // out: y or du; without data: not wanted
  const float *k, *d;      // d null: none
  float *dk, *dd;          // null: not wanted
  int64_t batch, time, channels, taps, kept, pairs, per_group, groups, tiles;
  Cf *kernel, *sums;  // [tiles, 16, 512], [groups, tiles, 16, 512]
};

/// Sequences 2·pair and 2·pair + 1 of this thread's channel, at its time steps.
template <int S>
__device__ __forceinline__ void load_points(const FastConvolution& o, const Rows<float>& from, int64_t pair,
                                            int64_t channel, int j, Cf (&x)[16]) {
  constexpr int J = RegisterFft<S>::J;
  const float* const first = from.data + 2 * pair * o.time * from.stride + channel;
  const float* const second = first + o.time * from.stride;
  const int time = channel < o.channels ? static_cast<int>(o.time) : 0;
  const bool both = 2 * pair + 1 < o.batch;
#pragma unroll
  for (int q = 0; q < 8; ++q) {
    const int t = j + q * J;
    x[q] = {0, 0};
    if (t < time) x[q].re = first[t * from.stride];
    if (t < time && both) x[q].im = second[t * from.stride];
  }
}
template <int S>
__device__ __forceinline__ void store_points(const FastConvolution& o, int64_t pair, int64_t channel, int j,
                                             const Cf (&x)[16]) {
  constexpr int J = RegisterFft<S>::J;
  float* const first = o.out.data + 2 * pair * o.time * o.out.stride + channel;
  float* const second = first + o.time * o.out.stride;
  const int time = channel < o.channels ? static_cast<int>(o.time) : 0;
  const bool both = 2 * pair + 1 < o.batch;
#pragma unroll
  for (int q = 0; q < 8; ++q) {
    const int t = j + q * J;
    if (t < time) first[t * o.out.stride] = x[q].re;
    if (t < time && both) second[t * o.out.stride] = x[q].im;
  }
}

/// Spectrum of (K + D δ₀)/M.
template <int S>
__global__ void __launch_bounds__(fft_threads) fast_spectrum_kernel(FastConvolution o) {
  using Fft = RegisterFft<S>;
  const Fft fft;
  const int64_t tile = blockIdx.x, channel = tile * Fft::C + fft.c;
  constexpr float scale = 1.0f / Fft::length;
  Cf x[16];
#pragma unroll
  for (int q = 0; q < 8; ++q) {
    const int t = fft.j + q * Fft::J;
    float tap = channel < o.channels && t < o.kept ? o.k[channel * o.taps + t] : 0.0f;
    if (t == 0 && o.d && channel < o.channels) tap += o.d[channel];
    x[q] = {scale * tap, 0};
  }
  fft.forward(x);
#pragma unroll
  for (int i = 0; i < 16; ++i) o.kernel[(tile * 16 + i) * fft_threads + threadIdx.x] = x[i];
}

template <int S>
__global__ void __launch_bounds__(fft_threads, 2) fast_convolution_kernel(FastConvolution o) {
  using Fft = RegisterFft<S>;
  const int64_t tile = blockIdx.x, pair = blockIdx.y;
  const Fft fft;
  const int64_t channel = tile * Fft::C + fft.c;
  Cf x[16];
  load_points<S>(o, o.u, pair, channel, fft.j, x);
  fft.forward(x);
  const Cf* const kernel = o.kernel + tile * 16 * fft_threads + threadIdx.x;
#pragma unroll
  for (int i = 0; i < 16; ++i) x[i] = x[i] * kernel[i * fft_threads];
  fft.inverse(x);
  store_points<S>(o, pair, channel, fft.j, x);
}

/// du, and Σ conj(Z) V over the pairs of the block's group.
template <int S>
__global__ void __launch_bounds__(fft_threads, 1) fast_backward_kernel(FastConvolution o) {
  using Fft = RegisterFft<S>;
  const int64_t tile = blockIdx.x, group = blockIdx.y;
  const Fft fft;
  const int64_t channel = tile * Fft::C + fft.c;
  const Cf* const kernel = o.kernel + tile * 16 * fft_threads + threadIdx.x;
  Cf sum[16];
#pragma unroll
  for (int i = 0; i < 16; ++i) sum[i] = {0, 0};
  const int64_t past = (group + 1) * o.per_group < o.pairs ? (group + 1) * o.per_group : o.pairs;
  for (int64_t pair = group * o.per_group; pair < past; ++pair) {
    Cf z[16], v[16];
    if (o.sums) {
      load_points<S>(o, o.u, pair, channel, fft.j, z);
      fft.forward(z);
      __syncthreads();
    }
    load_points<S>(o, o.dy, pair, channel, fft.j, v);
    fft.forward(v);
    if (o.sums) {
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        sum[i].re += z[i].re * v[i].re, sum[i].re += z[i].im * v[i].im;
        sum[i].im += z[i].re * v[i].im, sum[i].im -= z[i].im * v[i].re;
      }
    }
    if (o.out.data) {
#pragma unroll
      for (int i = 0; i < 16; ++i) v[i] = conj(kernel[i * fft_threads]) * v[i];
      fft.inverse(v);
      store_points<S>(o, pair, channel, fft.j, v);
    } else {
      __syncthreads();
    }
  }
  if (!o.sums) return;
  Cf* const to = o.sums + (group * o.tiles + tile) * 16 * fft_threads + threadIdx.x;
#pragma unroll
  for (int i = 0; i < 16; ++i) to[i * fft_threads] = sum[i];
}

/// dK: the groups' sums added in order, then back to time. dD = dK_0.
template <int S>
__global__ void __launch_bounds__(fft_threads) fast_kernel_gradient_kernel(FastConvolution o) {
  using Fft = RegisterFft<S>;
  const Fft fft;
  const int64_t tile = blockIdx.x, channel = tile * Fft::C + fft.c;
  constexpr float scale = 1.0f / Fft::length;
  Cf x[16];
#pragma unroll
  for (int i = 0; i < 16; ++i) x[i] = {0, 0};
  for (int64_t g = 0; g < o.groups; ++g) {
    const Cf* const from = o.sums + (g * o.tiles + tile) * 16 * fft_threads + threadIdx.x;
#pragma unroll
    for (int i = 0; i < 16; ++i) x[i] = x[i] + from[i * fft_threads];
  }
  fft.inverse(x);
  if (channel >= o.channels) return;
  if (o.dk) {
#pragma unroll
    for (int q = 0; q < 8; ++q) {
      const int t = fft.j + q * Fft::J;
      if (t < o.kept) o.dk[channel * o.taps + t] = scale * x[q].re;
    }
    for (int64_t t = o.kept + fft.j; t < o.taps; t += Fft::J) o.dk[channel * o.taps + t] = 0;
  }
  if (o.dd && fft.j == 0) o.dd[channel] = scale * x[0].re;
}

/// Step memory and geometry of both directions; S = 0: another path must be taken.
struct FastMemory {
  int64_t S = 0, tiles = 0, groups = 1, per_group = 0;
  Tensor kernel, sums;
  FastMemory(const Tensor& u, const Tensor& k) {
    const int64_t time = u.dim(1), pairs = (u.dim(0) + 1) / 2;
    if (arithmetic_type(u.dtype()) != DType::f32 || time > 4096) return;
    for (S = 4; 128 * S < time;) S *= 2;
    tiles = (u.dim(2) * S + 31) / 32;
    const int64_t wanted =
        std::max<int64_t>(1, std::min(pairs, convolution_blocks / std::max<int64_t>(1, tiles)));
    per_group = (pairs + wanted - 1) / wanted;
    groups = per_group > 0 ? (pairs + per_group - 1) / per_group : 1;
  }
  Tensor empty_spectrum(Context& ctx) const { return ctx.empty({tiles, 16, fft_threads, 2}, DType::f32); }
  Tensor empty_sums(Context& ctx) const { return ctx.empty({groups, tiles, 16, fft_threads, 2}, DType::f32); }
  FastConvolution arguments(const Tensor& u, const Tensor& k, const Tensor& d) const {
    FastConvolution o{};
    o.u = rows_of<float>(u, "fft_convolution: u");
    o.k = k.data<float>(), o.d = d.defined() ? d.data<float>() : nullptr;
    o.batch = u.dim(0), o.time = u.dim(1), o.channels = u.dim(2), o.taps = k.dim(1);
    o.kept = std::min(o.taps, o.time), o.pairs = (o.batch + 1) / 2;
    o.per_group = per_group, o.groups = groups, o.tiles = tiles;
    o.kernel = reinterpret_cast<Cf*>(kernel.data<float>());
    return o;
  }
};

/// body.operator()<S>() for the S of the plan.
template <class Body>
void with_length(int64_t S, const Body& body) {
  switch (S) {
    case 4:
      return body.template operator()<4>();
    case 8:
      return body.template operator()<8>();
    case 16:
      return body.template operator()<16>();
    default:
      return body.template operator()<32>();
  }
}

/// For K̂, made by the forward pass and read by the backward pass.
Tensor fast_spectrum_memory(Context& ctx, const Tensor& u, const Tensor& k) {
  if (const TilePlan plan(ctx, u); plan.fits) return plan.empty_spectrum(ctx);
  const FastMemory memory(u, k);
  return memory.S > 0 ? memory.empty_spectrum(ctx) : Tensor();
}

void fft_convolution_cuda(Context& ctx, const Tensor& u, const Tensor& k, const Tensor& d, Tensor& y,
                          const Tensor& kept) {
  if (const TilePlan plan(ctx, u); plan.fits) return tile_convolution(ctx, plan, u, k, d, y, kept);
  FastMemory memory(u, k);
  if (memory.S == 0) return long_convolution(ctx, u, k, d, y);
  memory.kernel = kept.defined() ? kept : memory.empty_spectrum(ctx);
  if (ctx.dry() || u.numel() == 0) return;
  FastConvolution o = memory.arguments(u, k, d);
  o.out = rows_of<float>(y, "fft_convolution: y");
  const auto tiles = static_cast<unsigned>(memory.tiles);
  with_length(memory.S, [&]<int S>() {
    constexpr size_t shared = RegisterFft<S>::shared;
    const dim3 grid(tiles, static_cast<unsigned>(o.pairs));
    launch(ctx, fast_spectrum_kernel<S>, tiles, fft_threads, shared, o);
    launch(ctx, fast_convolution_kernel<S>, grid, fft_threads, shared, o);
  });
}

void fft_convolution_backward_cuda(Context& ctx, const Tensor& u, const Tensor& k, const Tensor& d,
                                   const Tensor& dy, Tensor& du, Tensor& dk, Tensor& dd, const Tensor& kept) {
  if (const TilePlan plan(ctx, u); plan.fits)
    return tile_convolution_backward(ctx, plan, u, k, d, dy, {}, du, dk, dd, kept);
  FastMemory memory(u, k);
  if (memory.S == 0) return long_convolution_backward(ctx, u, k, d, dy, du, dk, dd);
  memory.kernel = kept.defined() ? kept : memory.empty_spectrum(ctx);
  memory.sums = memory.empty_sums(ctx);
  if (ctx.dry() || u.dim(2) == 0) return;
  FastConvolution o = memory.arguments(u, k, d);
  o.dy = rows_of<float>(dy, "fft_convolution_backward: dy");
  if (du.defined()) o.out = rows_of<float>(du, "fft_convolution_backward: du");
  if (dk.defined()) o.dk = dk.data<float>();
  if (dd.defined()) o.dd = dd.data<float>();
  const bool sums = dk.defined() || dd.defined();
  if (sums) o.sums = reinterpret_cast<Cf*>(memory.sums.data<float>());
  const auto tiles = static_cast<unsigned>(memory.tiles);
  with_length(memory.S, [&]<int S>() {
    constexpr size_t shared = RegisterFft<S>::shared;
    const dim3 grid(tiles, static_cast<unsigned>(o.groups));
    if (o.out.data && !kept.defined()) launch(ctx, fast_spectrum_kernel<S>, tiles, fft_threads, shared, o);
    launch(ctx, fast_backward_kernel<S>, grid, fft_threads, shared, o);
    if (sums) launch(ctx, fast_kernel_gradient_kernel<S>, tiles, fft_threads, shared, o);
  });
}

}  // namespace
}  // namespace eigentrace::kernels
