#pragma once
// What the kernels of ssd_chunks.h share: rows on their way to shared memory, products of a warp's tile, sums
// over lanes, and decays between two steps.
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/kernels/ssd_chunks.h"
#include "tensor/kernels/ssd_fragments.cuh"

namespace eigentrace::kernels {
namespace {

/// Copies n rows of one chunk, `width` columns of them, to [64, ld]; zeros after them, up to `room` columns.
template <int threads, int room, int ld>
__device__ __forceinline__ void stage_rows(float* to, const float* from, int64_t stride, int n, int width,
                                           bool aligned) {
  const int tid = static_cast<int>(threadIdx.x);
  if (aligned) {
    constexpr int across = room / 4, step = threads / across;
    static_assert(step > 0 && ssd_chunk % step == 0);
    const int column = tid % across * 4, first = tid / across;
    const float* x = from + first * stride + column;
    float* at = to + swizzled(first, column, ld);
    // Rows a multiple of 8 apart are swizzled alike.
    if constexpr (step % 8 == 0) {
#pragma unroll
      for (int row = 0; row < ssd_chunk; row += step, x += step * stride) {
        const bool valid = column < width && first + row < n;
        copy_async_16(at + row * ld, valid ? x : from, valid);
      }
    } else {
#pragma unroll
      for (int row = 0; row < ssd_chunk; row += step, x += step * stride) {
        const bool valid = column < width && first + row < n;
        copy_async_16(to + swizzled(first + row, column, ld), valid ? x : from, valid);
      }
    }
  } else {
    for (int e = tid; e < ssd_chunk * room; e += threads) {
      const int row = e / room, column = e % room;
      to[swizzled(row, column, ld)] = column < width && row < n ? from[row * stride + column] : 0.0f;
    }
  }
}

/// Copies a state, [rows, ld] dense, or `ld` columns of rows `stride` apart.
template <int threads, int rows, int ld>
__device__ __forceinline__ void stage_state(float* to, const float* from, int stride) {
#pragma unroll
  for (int e = 0; e < rows * ld / 4; e += threads) {
    const int at = e + static_cast<int>(threadIdx.x), row = at / (ld / 4), column = at % (ld / 4) * 4;
    if (rows * ld / 4 % threads == 0 || at < rows * ld / 4)
      copy_async_16(to + swizzled(row, column, ld), from + row * stride + column);
  }
}

/// Asks for `bytes` at x to be brought to the L2 cache.
__device__ __forceinline__ void prefetch(const void* x, int64_t bytes) {
#ifndef EIGENTRACE_EMULATE
  const auto* at = static_cast<const char*>(x);
  for (int64_t i = int64_t{threadIdx.x} * 128; i < bytes; i += int64_t{blockDim.x} * 128)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(at + i));
#else
  (void)x, (void)bytes;
#endif
}

/// d += A B over `depth` of k in blocks of 32: load_a(a, k, i), load_b(b, j, k, i) at eight i of the block at
/// k, for eight j of the tile's columns.
template <class F, int nt, int depth, class LoadA, class LoadB>
__device__ __forceinline__ void multiply_tile(float (&d)[nt][4], const LoadA& load_a, const LoadB& load_b) {
  constexpr int block = depth < 32 ? depth : 32;
#pragma unroll 1
  for (int k = 0; k < depth; k += block)
#pragma unroll
    for (int i = 0; i < block / 8; i += F::depth / 8) {
      typename F::A a;
      load_a(a, k, i);
#pragma unroll
      for (int j = 0; j < nt; ++j) {
        typename F::B b;
        load_b(b, j, k, i);
        F::multiply(d[j], a, b);
      }
    }
}
/// The same for k from `first` to `last`, in blocks of 16.
template <class F, int nt, class LoadA, class LoadB>
__device__ __forceinline__ void multiply_range(float (&d)[nt][4], int first, int last, const LoadA& load_a,
                                               const LoadB& load_b) {
#pragma unroll 1
  for (int k = first; k < last; k += 16)
#pragma unroll
    for (int i = 0; i < 2; i += F::depth / 8) {
      typename F::A a;
      load_a(a, k, i);
#pragma unroll
      for (int j = 0; j < nt; ++j) {
        typename F::B b;
        load_b(b, j, k, i);
        F::multiply(d[j], a, b);
      }
    }
}

/// The same, unrolled, for multiples of 16 up to 64: for kernels with registers to spare.
template <class F, int nt, class LoadA, class LoadB>
__device__ __forceinline__ void multiply_range_unrolled(float (&d)[nt][4], int first, int last,
                                                        const LoadA& load_a, const LoadB& load_b) {
#pragma unroll
  for (int k = 0; k < ssd_chunk; k += 16) {
    if (k < first || k >= last) continue;
#pragma unroll
    for (int i = 0; i < 2; i += F::depth / 8) {
      typename F::A a;
      load_a(a, k, i);
#pragma unroll
      for (int j = 0; j < nt; ++j) {
        typename F::B b;
        load_b(b, j, k, i);
        F::multiply(d[j], a, b);
      }
    }
  }
}

/// Sums over the four lanes of a row, and over the eight of a column.
template <class T>
__device__ __forceinline__ T sum_over_columns(T x) {
  x += __shfl_xor_sync(0xFFFFFFFFu, x, 1);
  return x + __shfl_xor_sync(0xFFFFFFFFu, x, 2);
}
template <class T>
__device__ __forceinline__ T sum_over_rows(T x) {
  x += __shfl_xor_sync(0xFFFFFFFFu, x, 4);
  x += __shfl_xor_sync(0xFFFFFFFFu, x, 8);
  return x + __shfl_xor_sync(0xFFFFFFFFu, x, 16);
}

/// d becomes the gradient of what the tile's elements of x, in shared memory, are elu + 1 of: elu' = min(x,
/// 1).
template <int nt, int ld>
__device__ __forceinline__ void times_elu_slope(float (&d)[nt][4], const float* x, int row0, int column0,
                                                const Lane& lane) {
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int j = 0; j < nt; ++j) {
      const float2 own =
          two_at(x + (row0 + lane.g + 8 * r) * ld + ((column0 + 8 * j + 2 * lane.t) ^ lane.of_g));
      d[j][2 * r] *= fminf(own.x, 1), d[j][2 * r + 1] *= fminf(own.y, 1);
    }
}

/// Rows g and g + 8 of a tile at (row0, column0) of a chunk to their place in memory.
template <int nt>
__device__ __forceinline__ void store_tile(const float (&d)[nt][4], const Heads<float>& to, int b, int h,
                                           int64_t t0, int n, int row0, int column0, int width, bool even,
                                           const Lane& lane) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = row0 + lane.g + 8 * r;
    if (row >= n) continue;
    float* x = to.row(b, h, t0 + row);
#pragma unroll
    for (int j = 0; j < nt; ++j) {
      const int column = column0 + 8 * j + 2 * lane.t;
      if (even && column < width)
        *reinterpret_cast<float2*>(x + column) = {d[j][2 * r], d[j][2 * r + 1]};
      else {
        if (column < width) x[column] = d[j][2 * r];
        if (column + 1 < width) x[column + 1] = d[j][2 * r + 1];
      }
    }
  }
}

/// Factors of a chunk's steps in shared memory.
struct ChunkSteps {
  float2 sum[ssd_chunk];
  float weight[ssd_chunk], fade[ssd_chunk], to_end[ssd_chunk], row[ssd_chunk];

  struct Own {
    float2 sum;
    float weight, fade, to_end, row;
  };
  static __device__ __forceinline__ Own read(const SsdPass& s, int b, int h, int c, int i) {
    const int64_t at = ((int64_t{b} * s.H + h) * s.chunks + c) * ssd_chunk + i,
                  t = int64_t{c} * ssd_chunk + i;
    const float row = t < s.steps ? s.row.at(b, t, h) : 0.0f;
    if (!s.decays && !s.weighs) return {{0, 0}, 1, 1, 1, row};
    return {s.f.sum[at], s.f.weight[at], s.f.fade[at], s.f.to_end[at], row};
  }
  __device__ __forceinline__ void put(const Own& x, int i) {
    sum[i] = x.sum, weight[i] = x.weight, fade[i] = x.fade, to_end[i] = x.to_end, row[i] = x.row;
  }
  /// By threads 0 to 63.
  __device__ __forceinline__ void load(const SsdPass& s, int b, int h, int c, int i) {
    put(read(s, b, h, c, i), i);
  }
  /// exp(A_i − A_j)
  __device__ __forceinline__ float between(int i, int j) const {
    const float2 own = sum[i], other = sum[j];
    return exp2f((own.x - other.x) + (own.y - other.y));
  }
};

/// dlog_a_t = Σ_{i≥t} net_i + Σ_{j<t} passed_j + over, by one warp, lane l's two being steps 2l and 2l + 1;
/// where decays are a head's, their sum instead.
__device__ __forceinline__ void store_flow(const SsdPass& s, const double (&net)[2],
                                           const double (&passed)[2], double over, int b, int h, int c,
                                           int n) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  double after = net[0] + net[1], before = passed[0] + passed[1];
#pragma unroll
  for (unsigned d = 1; d < 32; d *= 2) {
    const double x = __shfl_down_sync(0xFFFFFFFFu, after, d), y = __shfl_up_sync(0xFFFFFFFFu, before, d);
    if (lane + static_cast<int>(d) < 32) after += x;
    if (lane >= static_cast<int>(d)) before += y;
  }
  const double rest = __shfl_down_sync(0xFFFFFFFFu, after, 1u),
               start = __shfl_up_sync(0xFFFFFFFFu, before, 1u);
  over += (lane == 31 ? 0 : rest) + (lane == 0 ? 0 : start);
  const double value[2] = {over + net[1] + net[0], over + net[1] + passed[0]};
  double sum = 0;
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int i = 2 * lane + e;
    if (i >= n) continue;
    if (!s.flow) s.dlog_a.at(b, int64_t{c} * ssd_chunk + i, h) = static_cast<float>(value[e]);
    sum += value[e];
  }
  if (!s.flow) return;
  sum = sum_over_rows(sum_over_columns(sum));
  if (lane == 0) s.flow[(int64_t{b} * s.H + h) * s.chunks + c] = sum;
}

}  // namespace
}  // namespace eigentrace::kernels
#endif
