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

/// Dropout's factors on what stage_rows<threads, room, ld> has brought for this thread, before others may
/// read it: rows `step` on of batch entry b and head h, columns p0 on. A call of Philox decides for eight
/// elements, two lanes' packs: of two rows a lane draws for one, its neighbour for the other, and they
/// exchange halves.
template <int threads, int room, int ld>
__device__ __forceinline__ void mask_rows(float* to, const SsdMask& mask, int64_t first_row, int h, int p0,
                                          bool aligned) {
  const int tid = static_cast<int>(threadIdx.x);
  const auto keep = static_cast<float>(mask.stream.keep_scale);
  if (aligned && mask.width % 8 == 0) {
    constexpr int across = room / 4, step = threads / across;
    static_assert(ssd_chunk / step % 2 == 0);
    const int column = tid % across * 4, first = tid / across;
    const bool odd = tid % 2 != 0;
#pragma unroll 2
    for (int row = first; row < ssd_chunk; row += 2 * step) {
      const int64_t element = mask.element(first_row + row + (odd ? step : 0), h) + p0 + column;
      const Philox4 mine = mask.stream.words(element >> 3);
      const uint32_t theirs[2] = {__shfl_xor_sync(0xFFFFFFFFu, odd ? mine.x[0] : mine.x[2], 1),
                                  __shfl_xor_sync(0xFFFFFFFFu, odd ? mine.x[1] : mine.x[3], 1)};
      const uint32_t words[2][2] = {{odd ? theirs[0] : mine.x[0], odd ? theirs[1] : mine.x[1]},
                                    {odd ? mine.x[2] : theirs[0], odd ? mine.x[3] : theirs[1]}};
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        auto* at = reinterpret_cast<float4*>(to + swizzled(row + k * step, column, ld));
        const float4 x = *at;
        const auto factor = [&](int i) { return mask.stream.keeps(words[k][i / 2], i % 2) ? keep : 0.0f; };
        *at = {x.x * factor(0), x.y * factor(1), x.z * factor(2), x.w * factor(3)};
      }
    }
  } else if (aligned) {
    constexpr int across = room / 4, step = threads / across;
    const int column = tid % across * 4;
    for (int row = tid / across; row < ssd_chunk; row += step)
      for (int i = 0; i < 4; ++i)
        to[swizzled(row, column, ld) + i] *=
            mask.stream.template factor<float>(mask.element(first_row + row, h) + p0 + column + i);
  } else {
    for (int e = tid; e < ssd_chunk * room; e += threads)
      to[swizzled(e / room, e % room, ld)] *=
          mask.stream.template factor<float>(mask.element(first_row + e / room, h) + p0 + e % room);
  }
}

/// The same of a tile of 16 × 32 in registers, rows `row` and `row` + 8: a lane draws for eight columns of
/// each row, all four put their decisions together.
__device__ __forceinline__ void mask_tile(float (&d)[4][4], const SsdMask& mask, int64_t row, int h,
                                          int column0, const Lane& lane) {
  const int64_t element[2] = {mask.element(row, h) + column0, mask.element(row + 8, h) + column0};
  uint32_t kept[2] = {};  // of columns 8 j + e of the lane, at bit 8 j + e
  if (mask.width % 8 == 0) {
    const int64_t block[2] = {(element[0] >> 3) + lane.t, (element[1] >> 3) + lane.t};
    Philox4 words[2];
    DropoutStream::words<2>(static_cast<uint64_t>(mask.stream.state[0]),
                            static_cast<uint64_t>(mask.stream.state[1]) << 32 | mask.stream.op, block, words);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int i = 0; i < 8; ++i) kept[r] |= mask.stream.keeps(words[r].x[i / 2], i % 2) ? 1u << i : 0u;
      kept[r] <<= 8 * lane.t;
      kept[r] |= __shfl_xor_sync(0xFFFFFFFFu, kept[r], 1);
      kept[r] |= __shfl_xor_sync(0xFFFFFFFFu, kept[r], 2);
      kept[r] >>= 2 * lane.t;
    }
  } else {
#pragma unroll 1
    for (int i = 0; i < 8; ++i)
#pragma unroll
      for (int r = 0; r < 2; ++r)
        if (mask.stream.template factor<float>(element[r] + i / 2 * 8 + 2 * lane.t + i % 2) != 0)
          kept[r] |= 1u << (i / 2 * 8 + i % 2);
  }
  const auto keep = static_cast<float>(mask.stream.keep_scale);
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) d[j][2 * r + e] *= kept[r] & 1u << (8 * j + e) ? keep : 0.0f;
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
