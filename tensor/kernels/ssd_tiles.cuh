#pragma once
// What the kernels of ssd_chunks.h share: rows on their way to shared memory, products of a warp's tile, sums
// over lanes, and decays between two steps.
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/kernels/ssd_chunks.h"
#include "tensor/kernels/ssd_fragments.cuh"

namespace eigentrace::kernels {
namespace {

/// Rows of swizzled matrices: a multiple of 32 floats.
ET_HD constexpr int row_room(int width) { return (width + 31) / 32 * 32; }

/// Copies n rows of one chunk, `width` columns of them, to [64, ld]; zeros after them, up to `room` columns.
__device__ __forceinline__ void stage_rows(float* to, int ld, const float* from, int64_t stride, int n,
                                           int width, int room, bool aligned) {
  // One division, then rows in steps: the loop itself only adds.
  const int width_of = aligned ? 4 : 1, across = room / width_of,
            step = static_cast<int>(blockDim.x) / across;
  const int column = static_cast<int>(threadIdx.x) % across * width_of;
  int row = static_cast<int>(threadIdx.x) / across;
  if (row >= step) return;
  const float* x = from + row * stride + column;
  const bool inside = column < width;
  for (; row < ssd_chunk; row += step, x += step * stride) {
    const bool valid = inside && row < n;
    float* at = to + swizzled(row, column, ld);
    if (aligned)
      copy_async_16(at, valid ? x : from, valid);
    else
      *at = valid ? *x : 0.0f;
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

/// d += A B for k from `first` to `last`: load_a(a, k), load_b(b, j, k) for columns 8 j of the tile.
template <class F, int nt, class LoadA, class LoadB>
__device__ __forceinline__ void multiply_tile(float (&d)[nt][4], int first, int last, const LoadA& load_a,
                                              const LoadB& load_b) {
#pragma unroll 2
  for (int k = first; k < last; k += F::depth) {
    typename F::A a;
    load_a(a, k);
#pragma unroll
    for (int j = 0; j < nt; ++j) {
      typename F::B b;
      load_b(b, j, k);
      F::multiply(d[j], a, b);
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

  /// By threads 0 to 63.
  __device__ __forceinline__ void load(const SsdPass& s, int b, int h, int c, int i) {
    const int64_t at = ((int64_t{b} * s.H + h) * s.chunks + c) * ssd_chunk + i,
                  t = int64_t{c} * ssd_chunk + i;
    if (s.decays || s.weighs) {
      sum[i] = s.f.sum[at], weight[i] = s.f.weight[at], fade[i] = s.f.fade[at], to_end[i] = s.f.to_end[at];
    } else {
      sum[i] = {0, 0}, weight[i] = fade[i] = to_end[i] = 1;
    }
    row[i] = t < s.steps ? s.row.at(b, t, h) : 0.0f;
  }
  /// exp(A_i − A_j)
  __device__ __forceinline__ float between(int i, int j) const {
    const float2 own = sum[i], other = sum[j];
    return expf((own.x - other.x) + (own.y - other.y));
  }
};

}  // namespace
}  // namespace eigentrace::kernels
#endif
