#pragma once
// The convolution on CUDA for sequences of any length: block_fft on buffers in global memory, a block a pair
// of sequences of one channel. Right for everything, fast for nothing: fft_convolution_cuda.cuh has the path
// for the lengths of the study.
#include "tensor/kernels/block_fft.cuh"

namespace eigentrace::kernels {
namespace {

constexpr int long_threads = 256;
constexpr int64_t long_blocks = 132, long_groups = 4;  // blocks that share the buffers; parts of the batch

template <class T>
struct LongConvolution {
  Rows<T> u, dy, out;  // out: y or du; without data: not wanted
  const T *k, *d;      // d null: none
  T *dk, *dd;          // null: not wanted
  int64_t batch, time, channels, taps, kept;
  const cplx<T>* roots;
  cplx<T>*kernel, *sums;  // [channels, M], [groups, channels, M]
  cplx<T>* buffers;       // [blocks, 3, M]
  int64_t groups;
};

/// Two sequences of a channel as one signal, padded with zeros.
template <class T>
__device__ void load_pair(const LongConvolution<T>& o, const Rows<T>& x, int64_t pair, int64_t channel,
                          int64_t length, cplx<T>* z) {
  const T* first = x.data + 2 * pair * o.time * x.stride + channel;
  const bool both = 2 * pair + 1 < o.batch;
  for (int64_t t = threadIdx.x; t < length; t += long_threads)
    z[t] = {t < o.time ? first[t * x.stride] : T(0),
            t < o.time && both ? first[(o.time + t) * x.stride] : T(0)};
}
template <class T>
__device__ void store_pair(const LongConvolution<T>& o, const cplx<T>* z, int64_t pair, int64_t channel) {
  T* first = o.out.data + 2 * pair * o.time * o.out.stride + channel;
  const bool both = 2 * pair + 1 < o.batch;
  for (int64_t t = threadIdx.x; t < o.time; t += long_threads) {
    first[t * o.out.stride] = z[t].re;
    if (both) first[(o.time + t) * o.out.stride] = z[t].im;
  }
}

/// Spectrum of K + D δ₀ over M.
template <class T>
__global__ void __launch_bounds__(long_threads) long_spectrum_kernel(LongConvolution<T> o, FftPlan plan) {
  const int64_t length = plan.length;
  cplx<T>* const buffer = o.buffers + blockIdx.x * 3 * length;
  const T scale = static_cast<T>(1.0 / static_cast<double>(length));
  for (int64_t channel = blockIdx.x; channel < o.channels; channel += gridDim.x) {
    __syncthreads();
    for (int64_t t = threadIdx.x; t < length; t += long_threads) {
      T tap = t < o.kept ? o.k[channel * o.taps + t] : T(0);
      if (t == 0 && o.d) tap += o.d[channel];
      buffer[t] = {scale * tap, 0};
    }
    const cplx<T>* z = block_fft<false>(plan, o.roots, buffer, buffer + length);
    for (int64_t p = threadIdx.x; p < length; p += long_threads) o.kernel[channel * length + p] = z[p];
  }
}

template <class T>
__global__ void __launch_bounds__(long_threads) long_convolution_kernel(LongConvolution<T> o, FftPlan plan) {
  const int64_t length = plan.length, pairs = (o.batch + 1) / 2;
  cplx<T>* const buffer = o.buffers + blockIdx.x * 3 * length;
  for (int64_t item = blockIdx.x; item < pairs * o.channels; item += gridDim.x) {
    const int64_t channel = item % o.channels, pair = item / o.channels;
    __syncthreads();
    load_pair(o, o.u, pair, channel, length, buffer);
    cplx<T>* z = block_fft<false>(plan, o.roots, buffer, buffer + length);
    for (int64_t p = threadIdx.x; p < length; p += long_threads) z[p] = z[p] * o.kernel[channel * length + p];
    store_pair(o, block_fft<true>(plan, o.roots, z, z == buffer ? buffer + length : buffer), pair, channel);
  }
}

/// du, and Σ conj(Z) V over the pairs of each group.
template <class T>
__global__ void __launch_bounds__(long_threads) long_backward_kernel(LongConvolution<T> o, FftPlan plan) {
  const int64_t length = plan.length, pairs = (o.batch + 1) / 2, per = (pairs + o.groups - 1) / o.groups;
  cplx<T>* const buffer = o.buffers + blockIdx.x * 3 * length;
  cplx<T>* const kept = buffer + 2 * length;
  for (int64_t item = blockIdx.x; item < o.groups * o.channels; item += gridDim.x) {
    const int64_t channel = item % o.channels, group = item / o.channels;
    cplx<T>* const sum = o.sums + item * length;
    for (int64_t p = threadIdx.x; p < length; p += long_threads) sum[p] = {0, 0};
    const int64_t past = (group + 1) * per < pairs ? (group + 1) * per : pairs;
    for (int64_t pair = group * per; pair < past; ++pair) {
      __syncthreads();
      load_pair(o, o.u, pair, channel, length, buffer);
      const cplx<T>* z = block_fft<false>(plan, o.roots, buffer, buffer + length);
      for (int64_t p = threadIdx.x; p < length; p += long_threads) kept[p] = z[p];
      __syncthreads();
      load_pair(o, o.dy, pair, channel, length, buffer);
      cplx<T>* v = block_fft<false>(plan, o.roots, buffer, buffer + length);
      for (int64_t p = threadIdx.x; p < length; p += long_threads) {
        sum[p] = sum[p] + conj(kept[p]) * v[p];
        v[p] = conj(o.kernel[channel * length + p]) * v[p];
      }
      if (o.out.data)
        store_pair(o, block_fft<true>(plan, o.roots, v, v == buffer ? buffer + length : buffer), pair,
                   channel);
    }
  }
}

/// dK: the groups' sums added in order, then back to time. dD = dK_0.
template <class T>
__global__ void __launch_bounds__(long_threads)
    long_kernel_gradient_kernel(LongConvolution<T> o, FftPlan plan) {
  const int64_t length = plan.length;
  cplx<T>* const buffer = o.buffers + blockIdx.x * 3 * length;
  const T scale = static_cast<T>(1.0 / static_cast<double>(length));
  for (int64_t channel = blockIdx.x; channel < o.channels; channel += gridDim.x) {
    __syncthreads();
    for (int64_t p = threadIdx.x; p < length; p += long_threads) {
      cplx<T> sum = o.sums[channel * length + p];
      for (int64_t g = 1; g < o.groups; ++g) sum = sum + o.sums[(g * o.channels + channel) * length + p];
      buffer[p] = sum;
    }
    const cplx<T>* z = block_fft<true>(plan, o.roots, buffer, buffer + length);
    if (o.dk)
      for (int64_t t = threadIdx.x; t < o.taps; t += long_threads)
        o.dk[channel * o.taps + t] = t < o.kept ? scale * z[t].re : T(0);
    if (o.dd && threadIdx.x == 0) o.dd[channel] = scale * z[0].re;
  }
}

/// Step memory of both directions.
struct LongMemory {
  int64_t length, groups;
  Tensor roots, kernel, buffers, sums;
  LongMemory(Context& ctx, const Tensor& u, const Tensor& k, bool backward) {
    const int64_t kept = std::min(k.dim(1), u.dim(1)), pairs = (u.dim(0) + 1) / 2;
    for (length = 1; length < u.dim(1) + kept - 1;) length *= 2;
    groups = std::max<int64_t>(1, std::min(long_groups, pairs));
    const DType dtype = u.dtype();
    roots = ctx.empty({2 * length}, dtype), kernel = ctx.empty({u.dim(2), 2 * length}, dtype);
    buffers = ctx.empty({long_blocks, 6 * length}, dtype);
    if (backward) sums = ctx.empty({groups, u.dim(2), 2 * length}, dtype);
  }
  template <class T>
  LongConvolution<T> arguments(const Context& ctx, const Tensor& u, const Tensor& k, const Tensor& d) const {
    LongConvolution<T> o{};
    o.u = rows_of<T>(u, "fft_convolution: u");
    o.k = k.data<T>(), o.d = d.defined() ? d.data<T>() : nullptr;
    o.batch = u.dim(0), o.time = u.dim(1), o.channels = u.dim(2), o.taps = k.dim(1);
    o.kept = std::min(o.taps, o.time), o.groups = groups;
    o.roots = fill_roots<T>(ctx, length, roots);
    o.kernel = reinterpret_cast<cplx<T>*>(kernel.data<T>());
    o.buffers = reinterpret_cast<cplx<T>*>(buffers.data<T>());
    if (sums.defined()) o.sums = reinterpret_cast<cplx<T>*>(sums.data<T>());
    return o;
  }
};

inline unsigned long_grid(int64_t items) { return static_cast<unsigned>(std::min(items, long_blocks)); }

void long_convolution(Context& ctx, const Tensor& u, const Tensor& k, const Tensor& d, Tensor& y) {
  const LongMemory memory(ctx, u, k, false);
  dispatch_floating(ctx, "fft_convolution", u.dtype(), [&]<class T>() {
    if (u.numel() == 0) return;
    LongConvolution<T> o = memory.arguments<T>(ctx, u, k, d);
    o.out = rows_of<T>(y, "fft_convolution: y");
    const FftPlan plan(memory.length);
    launch(ctx, long_spectrum_kernel<T>, long_grid(o.channels), long_threads, 0, o, plan);
    launch(ctx, long_convolution_kernel<T>, long_grid((o.batch + 1) / 2 * o.channels), long_threads, 0, o,
           plan);
  });
}

void long_convolution_backward(Context& ctx, const Tensor& u, const Tensor& k, const Tensor& d,
                               const Tensor& dy, Tensor& du, Tensor& dk, Tensor& dd) {
  const LongMemory memory(ctx, u, k, true);
  dispatch_floating(ctx, "fft_convolution_backward", u.dtype(), [&]<class T>() {
    if (u.dim(2) == 0) return;
    LongConvolution<T> o = memory.arguments<T>(ctx, u, k, d);
    o.dy = rows_of<T>(dy, "fft_convolution_backward: dy");
    if (du.defined()) o.out = rows_of<T>(du, "fft_convolution_backward: du");
    if (dk.defined()) o.dk = dk.data<T>();
    if (dd.defined()) o.dd = dd.data<T>();
    const FftPlan plan(memory.length);
    launch(ctx, long_spectrum_kernel<T>, long_grid(o.channels), long_threads, 0, o, plan);
    launch(ctx, long_backward_kernel<T>, long_grid(o.groups * o.channels), long_threads, 0, o, plan);
    if (o.dk || o.dd)
      launch(ctx, long_kernel_gradient_kernel<T>, long_grid(o.channels), long_threads, 0, o, plan);
  });
}

}  // namespace
}  // namespace eigentrace::kernels
