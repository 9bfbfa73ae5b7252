#pragma once
// The long convolution of sequences of 513 to 1024 on CUDA, float32: a warp a channel, eight channels a
// block, so that u, y and their gradients are read and written in whole 32-byte sectors. K̂ of a block's
// channels stays in shared memory over its part of the batch; the next sequence is on its way while one is
// transformed.
//
// CIFAR (B 50, T 1024, D 512; 135 and 212 µs on an H200): 128 blocks; bytes 210 MB forward, 315 MB backward:
// 50 and 75 µs at 4.2 TB/s. Instructions of a warp and sequence: about 3200 forward, 4700 backward: 25600 of
// them on 132·4 schedulers at 1.9 GHz are 82 and 120 µs.
#include "tensor/kernels/warp_fft.cuh"
#include "tensor/mma.h"
#include "tensor/vec.h"

namespace eigentrace::kernels {
namespace {

constexpr int tile_channels = 8, tile_threads = 32 * tile_channels;
constexpr int64_t tile_blocks = 132;  // wanted, if the batch is long enough
constexpr int stage_floats = warp_points * tile_channels;

struct TileConvolution {
  Rows<float> u, dy, out, sent;  // out: y or du; sent: added to it; without data: not wanted
  const float *k, *d;            // d null: none
  float *dk, *dd;                // null: not wanted
  int64_t batch, time, channels, taps, kept, per_group, groups, tiles;
  Cf *kernel, *sums;  // [tiles, 8, 32, 32], [groups, tiles, 8, 32, 32]
};

using ForwardFft = WarpFft<false>;  // two halves' exchanges beside K̂ and two stages
using BackwardFft = WarpFft<true>;

/// Parts of a block's dynamic shared memory: K̂, the factors, then per half its exchanges and stages.
struct TileMemory {
  static constexpr size_t kernel = sizeof(Cf) * warp_points * tile_channels;
  static constexpr size_t factors = sizeof(Cf) * turn_factors;
  static constexpr size_t stage = sizeof(float) * stage_floats;
  static constexpr size_t half = sizeof(float) * ForwardFft::pitch * tile_channels + stage;
  static constexpr size_t forward = kernel + factors + 2 * half;
  static constexpr size_t backward =
      kernel + factors + sizeof(float) * BackwardFft::pitch * tile_channels + 2 * stage;
  static constexpr size_t alone = factors + sizeof(float) * ForwardFft::pitch * tile_channels;
};

/// The threads of half `half` of a block of 2 · 256. (The emulation's halves meet as often as each other.)
__device__ __forceinline__ void half_barrier([[maybe_unused]] int half) {
#ifdef EIGENTRACE_EMULATE
  __syncthreads();
#else
  asm volatile("bar.sync %0, %1;" ::"r"(half + 1), "n"(tile_threads) : "memory");
#endif
}

/// A half that has no sequence left, where both must meet.
__device__ __forceinline__ void leave_half() {
#ifdef EIGENTRACE_EMULATE
  for (int meeting = 0; meeting < 3; ++meeting) __syncthreads();
#endif
}

/// Where (t, pack of four channels) of a stage lies: turned so that warps read with a fourth of the
/// conflicts.
__device__ __forceinline__ int staged(int t, int pack) { return (2 * t + (pack ^ (t >> 2 & 1))) * 4; }

/// The packs of a sequence's rows of which one of 256 threads is in charge: at `t` and every 128 steps on.
struct ThreadPacks {
  static constexpr int count = 2 * warp_points / tile_threads, step = tile_threads / 2;
  int t, pack, channels;  // channels that there are from the pack's first one on
  int64_t channel;
  __device__ ThreadPacks(const TileConvolution& o, int64_t tile, int thread) {
    t = thread >> 1, pack = thread & 1, channel = tile * tile_channels + 4 * pack;
    channels = static_cast<int>(o.channels - channel);
  }
  __device__ float* first(const TileConvolution& o, const Rows<float>& rows, int64_t sequence) const {
    return rows.data + (sequence * o.time + t) * rows.stride + channel;
  }
  __device__ bool there(const TileConvolution& o, int i) const {
    return channels > 0 && t + i * step < static_cast<int>(o.time);
  }
};

/// Asks for a sequence of the tile's channels; zeros beyond its end.
template <bool wide>
__device__ __forceinline__ void request(const TileConvolution& o, const Rows<float>& from, int64_t sequence,
                                        const ThreadPacks& packs, float* stage) {
  const float* const first = packs.first(o, from, sequence);
  float* const to = stage + staged(packs.t, packs.pack);
#pragma unroll
  for (int i = 0; i < ThreadPacks::count; ++i) {
    const bool there = packs.there(o, i);
    const float* const at = first + i * ThreadPacks::step * from.stride;
    float* const place = to + i * ThreadPacks::step * tile_channels;  // 128 steps turn nothing
    if constexpr (wide) {
      copy_async_16(place, there ? at : from.data, there);
    } else {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const bool channel = there && c < packs.channels;
        copy_async_4(place + c, channel ? at + c : from.data, channel);
      }
    }
  }
  copy_commit();
}
__device__ __forceinline__ void take(const float* stage, int lane, int warp, float (&u)[32]) {
  const float* const from = stage + staged(lane, warp >> 2) + (warp & 3);
#pragma unroll
  for (int q = 0; q < 32; ++q) u[q] = from[32 * q * tile_channels];  // 32 steps turn nothing
}
/// What is added to the results, on its way before they are there.
template <bool wide>
__device__ __forceinline__ void ask_sent(const TileConvolution& o, int64_t sequence, const ThreadPacks& packs,
                                         Vec<float, 4> (&sent)[ThreadPacks::count]) {
  const float* const first = packs.first(o, o.sent, sequence);
#pragma unroll
  for (int i = 0; i < ThreadPacks::count; ++i) {
    if (!packs.there(o, i)) continue;
    const float* const from = first + i * ThreadPacks::step * o.sent.stride;
    if constexpr (wide)
      sent[i] = load_vec<4>(from);
    else
#pragma unroll
      for (int c = 0; c < 4; ++c)
        if (c < packs.channels) sent[i].x[c] = from[c];
  }
}
/// Results of eight warps, in their exchanges, as rows.
template <int pitch, bool wide, bool add>
__device__ __forceinline__ void write_rows(const TileConvolution& o, const float* exchange, int64_t sequence,
                                           const ThreadPacks& packs,
                                           const Vec<float, 4> (&sent)[ThreadPacks::count]) {
  float* const first = packs.first(o, o.out, sequence);
  const float* const from = exchange + 4 * packs.pack * pitch + packs.t;
#pragma unroll
  for (int i = 0; i < ThreadPacks::count; ++i) {
    if (!packs.there(o, i)) continue;
    float* const to = first + i * ThreadPacks::step * o.out.stride;
    Vec<float, 4> y;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      y.x[c] = from[c * pitch + i * ThreadPacks::step];
      if constexpr (add) y.x[c] += sent[i].x[c];
    }
    if constexpr (wide)
      store_vec(to, y);
    else
#pragma unroll
      for (int c = 0; c < 4; ++c)
        if (c < packs.channels) to[c] = y.x[c];
  }
}
/// A sequence's own: y[32] of lane l at l + 32 q.
template <class Fft>
__device__ __forceinline__ void give(const Fft& fft, const float (&y)[32]) {
  __syncwarp();
#pragma unroll
  for (int q = 0; q < 32; ++q) fft.exchange[fft.lane + 32 * q] = y[q];
}

/// Spectrum of (K + D δ₀)/1024, a warp a channel.
__global__ void __launch_bounds__(tile_threads) tile_spectrum_kernel(TileConvolution o) {
  char* const memory = dynamic_shared<char>();
  Cf* const factors = reinterpret_cast<Cf*>(memory);
  float* const exchange = reinterpret_cast<float*>(memory + TileMemory::factors);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  ForwardFft::fill(factors);
  __syncthreads();
  const ForwardFft fft{lane, exchange + warp * ForwardFft::pitch, factors};
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * tile_channels + warp;
  float taps[32];
  Cf x[32];
#pragma unroll
  for (int q = 0; q < 32; ++q) {
    const int t = lane + 32 * q;
    taps[q] = channel < o.channels && t < o.kept ? o.k[channel * o.taps + t] : 0.0f;
    if (t == 0 && o.d && channel < o.channels) taps[q] += o.d[channel];
    taps[q] *= 1.0f / warp_points;
  }
  fft.forward(taps, x);
  Cf* const to = o.kernel + channel * warp_points + lane;
#pragma unroll
  for (int k = 0; k < 32; ++k) to[32 * k] = x[k];
}

__device__ __forceinline__ void request_kernel(const TileConvolution& o, int64_t tile, Cf* to) {
  const Cf* const from = o.kernel + tile * tile_channels * warp_points;
  for (int i = 2 * static_cast<int>(threadIdx.x); i < tile_channels * warp_points;
       i += 2 * static_cast<int>(blockDim.x))
    copy_async_16(to + i, from + i);
  copy_commit();  // here: a half without a sequence commits nothing else, and must wait for its part
}

/// Each half of a block takes every second sequence of the group.
template <bool wide>
__global__ void __launch_bounds__(2 * tile_threads, 1)
    tile_convolution_kernel(const __grid_constant__ TileConvolution o) {
  char* memory = dynamic_shared<char>();
  Cf* const kernel = reinterpret_cast<Cf*>(memory);
  Cf* const factors = reinterpret_cast<Cf*>(memory + TileMemory::kernel);
  const int half = static_cast<int>(threadIdx.x) / tile_threads;
  memory += TileMemory::kernel + TileMemory::factors + half * TileMemory::half;
  float* const exchange = reinterpret_cast<float*>(memory);
  float* const stage = exchange + ForwardFft::pitch * tile_channels;
  const int thread = static_cast<int>(threadIdx.x) % tile_threads, lane = thread % 32, warp = thread / 32;
  const int64_t tile = blockIdx.x, begin = blockIdx.y * o.per_group;
  const int64_t end = begin + o.per_group < o.batch ? begin + o.per_group : o.batch;
  const ThreadPacks packs(o, tile, thread);
  request_kernel(o, tile, kernel);
  if (begin + half < end) request<wide>(o, o.u, begin + half, packs, stage);
  ForwardFft::fill(factors);
  copy_wait<0>();
  __syncthreads();
  const ForwardFft fft{lane, exchange + warp * ForwardFft::pitch, factors};
  const Cf* const k = kernel + warp * warp_points + lane;
  for (int64_t sequence = begin + half; sequence - half < end; sequence += 2) {
    if (sequence >= end) return leave_half();
    float u[32];
    Cf x[32];
    copy_wait<0>();
    half_barrier(half);
    take(stage, lane, warp, u);
    half_barrier(half);
    if (sequence + 2 < end) request<wide>(o, o.u, sequence + 2, packs, stage);
    fft.forward(u, x);
#pragma unroll
    for (int i = 0; i < 32; ++i) x[i] = x[i] * k[32 * i];
    fft.inverse(x, u);
    give(fft, u);
    half_barrier(half);
    write_rows<ForwardFft::pitch, wide, false>(o, exchange, sequence, packs, {});
  }
}

/// du, with what was sent, and Σ conj(U) dY over the sequences of the block's group.
template <bool wide, bool add>
__global__ void __launch_bounds__(tile_threads, 1)
    tile_backward_kernel(const __grid_constant__ TileConvolution o) {
  char* const memory = dynamic_shared<char>();
  Cf* const kernel = reinterpret_cast<Cf*>(memory);
  Cf* const factors = reinterpret_cast<Cf*>(memory + TileMemory::kernel);
  float* const exchange = reinterpret_cast<float*>(memory + TileMemory::kernel + TileMemory::factors);
  float* const stage_u = exchange + BackwardFft::pitch * tile_channels;
  float* const stage_dy = stage_u + stage_floats;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int64_t tile = blockIdx.x, begin = blockIdx.y * o.per_group;
  const int64_t end = begin + o.per_group < o.batch ? begin + o.per_group : o.batch;
  const ThreadPacks packs(o, tile, thread);
  request_kernel(o, tile, kernel);
  request<wide>(o, o.u, begin, packs, stage_u);
  request<wide>(o, o.dy, begin, packs, stage_dy);
  BackwardFft::fill(factors);
  const BackwardFft fft{lane, exchange + warp * BackwardFft::pitch, factors};
  const Cf* const k = kernel + warp * warp_points + lane;
  Cf sum[32];
#pragma unroll
  for (int i = 0; i < 32; ++i) sum[i] = {0, 0};
  for (int64_t sequence = begin; sequence < end; ++sequence) {
    float u[32];
    Cf z[32], v[32];
    copy_wait<0>();
    __syncthreads();
    take(stage_u, lane, warp, u);
    fft.forward(u, z);
    take(stage_dy, lane, warp, u);
    __syncthreads();
    if (sequence + 1 < end) {
      request<wide>(o, o.u, sequence + 1, packs, stage_u);
      request<wide>(o, o.dy, sequence + 1, packs, stage_dy);
    }
    fft.forward(u, v);
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      sum[i].re += z[i].re * v[i].re, sum[i].re += z[i].im * v[i].im;
      sum[i].im += z[i].re * v[i].im, sum[i].im -= z[i].im * v[i].re;
      v[i] = conj(k[32 * i]) * v[i];
    }
    fft.inverse(v, u);
    Vec<float, 4> sent[ThreadPacks::count];
    if constexpr (add) ask_sent<wide>(o, sequence, packs, sent);
    give(fft, u);
    __syncthreads();
    if (o.out.data) write_rows<BackwardFft::pitch, wide, add>(o, exchange, sequence, packs, sent);
  }
  if (!o.sums) return;
  Cf* const to = o.sums + ((blockIdx.y * o.tiles + tile) * tile_channels + warp) * warp_points + lane;
#pragma unroll
  for (int i = 0; i < 32; ++i) to[32 * i] = sum[i];
}

/// dK: the groups' sums added in order, then back to time. dD = dK_0.
__global__ void __launch_bounds__(tile_threads) tile_kernel_gradient_kernel(TileConvolution o) {
  char* const memory = dynamic_shared<char>();
  Cf* const factors = reinterpret_cast<Cf*>(memory);
  float* const exchange = reinterpret_cast<float*>(memory + TileMemory::factors);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  ForwardFft::fill(factors);
  __syncthreads();
  const ForwardFft fft{lane, exchange + warp * ForwardFft::pitch, factors};
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * tile_channels + warp;
  Cf x[32];
  float y[32];
#pragma unroll
  for (int i = 0; i < 32; ++i) x[i] = {0, 0};
  for (int64_t g = 0; g < o.groups; ++g) {
    const Cf* const from = o.sums + (g * o.tiles * tile_channels + channel) * warp_points + lane;
#pragma unroll
    for (int i = 0; i < 32; ++i) x[i] = x[i] + from[32 * i];
  }
  fft.inverse(x, y);
  if (channel >= o.channels) return;
  constexpr float scale = 1.0f / warp_points;
  if (o.dk) {
#pragma unroll
    for (int q = 0; q < 32; ++q)
      if (lane + 32 * q < o.kept) o.dk[channel * o.taps + lane + 32 * q] = scale * y[q];
    for (int64_t t = o.kept + lane; t < o.taps; t += 32) o.dk[channel * o.taps + t] = 0;
  }
  if (o.dd && lane == 0) o.dd[channel] = scale * y[0];
}

/// Step memory and geometry of both directions; `fits` by shape and device alone.
struct TilePlan {
  bool fits = false;
  int64_t tiles = 0, groups = 1, per_group = 0;
  TilePlan(const Context& ctx, const Tensor& u) {
    if (arithmetic_type(u.dtype()) != DType::f32 || u.dim(1) <= warp_points / 2 || u.dim(1) > warp_points)
      return;
    static const size_t limit = [&] {
      int bytes = 0;
      ET_CUDA(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, ctx.device().index));
      return static_cast<size_t>(bytes);
    }();
    fits = limit >= std::max(TileMemory::forward, TileMemory::backward);
    tiles = (u.dim(2) + tile_channels - 1) / tile_channels;
    const int64_t batch = u.dim(0), most = tile_blocks / std::max<int64_t>(1, tiles);
    const int64_t wanted = std::max<int64_t>(1, std::min(batch, most));
    per_group = (batch + wanted - 1) / wanted;
    groups = per_group > 0 ? (batch + per_group - 1) / per_group : 1;
  }
  Tensor empty_spectrum(Context& ctx) const {
    return ctx.empty({tiles * tile_channels, warp_points, 2}, DType::f32);
  }
  Tensor empty_sums(Context& ctx) const {
    return ctx.empty({groups, tiles * tile_channels, warp_points, 2}, DType::f32);
  }
  TileConvolution arguments(const Tensor& u, const Tensor& k, const Tensor& d, const Tensor& kernel) const {
    TileConvolution o{};
    o.u = rows_of<float>(u, "fft_convolution: u");
    o.k = k.data<float>(), o.d = d.defined() ? d.data<float>() : nullptr;
    o.batch = u.dim(0), o.time = u.dim(1), o.channels = u.dim(2), o.taps = k.dim(1);
    o.kept = std::min(o.taps, o.time);
    o.per_group = per_group, o.groups = groups, o.tiles = tiles;
    o.kernel = reinterpret_cast<Cf*>(kernel.data<float>());
    return o;
  }
};
bool rows_are_packs(const Rows<float>& x) {
  return !x.data || (reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.stride % 4 == 0 && x.cols % 4 == 0);
}

void tile_convolution(Context& ctx, const TilePlan& plan, const Tensor& u, const Tensor& k, const Tensor& d,
                      Tensor& y, const Tensor& kept) {
  const Tensor kernel = kept.defined() ? kept : plan.empty_spectrum(ctx);
  if (ctx.dry() || u.numel() == 0) return;
  TileConvolution o = plan.arguments(u, k, d, kernel);
  o.out = rows_of<float>(y, "fft_convolution: y");
  const bool wide = rows_are_packs(o.u) && rows_are_packs(o.out);
  const auto tiles = static_cast<unsigned>(plan.tiles), groups = static_cast<unsigned>(plan.groups);
  launch(ctx, tile_spectrum_kernel, tiles, tile_threads, TileMemory::alone, o);
  launch(ctx, wide ? tile_convolution_kernel<true> : tile_convolution_kernel<false>, dim3(tiles, groups),
         2 * tile_threads, TileMemory::forward, o);
}

void tile_convolution_backward(Context& ctx, const TilePlan& plan, const Tensor& u, const Tensor& k,
                               const Tensor& d, const Tensor& dy, const Tensor& sent, Tensor& du, Tensor& dk,
                               Tensor& dd, const Tensor& kept) {
  const Tensor kernel = kept.defined() ? kept : plan.empty_spectrum(ctx), sums = plan.empty_sums(ctx);
  if (ctx.dry() || u.dim(2) == 0) return;
  TileConvolution o = plan.arguments(u, k, d, kernel);
  o.dy = rows_of<float>(dy, "fft_convolution_backward: dy");
  if (du.defined()) o.out = rows_of<float>(du, "fft_convolution_backward: du");
  if (dk.defined()) o.dk = dk.data<float>();
  if (dd.defined()) o.dd = dd.data<float>();
  const bool add = du.defined() && sent.defined();
  if (add) o.sent = rows_of<float>(sent, "fft_convolution_backward: sent");
  const bool wide =
      rows_are_packs(o.u) && rows_are_packs(o.dy) && rows_are_packs(o.out) && rows_are_packs(o.sent);
  o.sums = reinterpret_cast<Cf*>(sums.data<float>());
  const auto tiles = static_cast<unsigned>(plan.tiles), groups = static_cast<unsigned>(plan.groups);
  if (!kept.defined()) launch(ctx, tile_spectrum_kernel, tiles, tile_threads, TileMemory::alone, o);
  const auto backward = wide ? (add ? tile_backward_kernel<true, true> : tile_backward_kernel<true, false>)
                             : (add ? tile_backward_kernel<false, true> : tile_backward_kernel<false, false>);
  launch(ctx, backward, dim3(tiles, groups), tile_threads, TileMemory::backward, o);
  if (dk.defined() || dd.defined())
    launch(ctx, tile_kernel_gradient_kernel, tiles, tile_threads, TileMemory::alone, o);
}

}  // namespace
}  // namespace eigentrace::kernels
