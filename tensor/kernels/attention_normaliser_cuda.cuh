#pragma once
// Running sums of linear attention's normaliser on CUDA. Time in chunks of 64: sums of each chunk, then, a
// block a chunk, the earlier chunks' sums in order, each warp's eight rows, and the rows themselves: q and k
// are read twice, the second time from the cache where a chunk's rows fit.
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/kernels/row_scale.cuh"
#include "tensor/math.h"

namespace eigentrace::kernels {
namespace {

constexpr int sums_chunk = 64, sums_warps = 8, sums_rows = 8, sums_columns = 128, sums_lane_columns = 4;

/// log_eta: q·z. scaled: dη z (dq). suffix: Σ_{i≥j} dη_i q_i (dk), x being q.
enum class SumsResult : unsigned char { log_eta, scaled, suffix };

template <class T>
struct SumsOperands {
  int steps, H, N, chunks;
  Heads<T> x, q, to;                // what is summed, what meets it, rows written
  PerStep<const T> eta, cotangent;  // backward
  PerStep<T> log_eta;               // forward
  T* sums;                          // [B, H, chunks, N]
  // Or, instead of a cotangent of log η: the products dout_i·(η_i out_i), [parts, B, T, H], dout being the
  // gradient of the output divided by η; rows are then added to what `to` holds.
  const double* dots = nullptr;
  int parts = 0;
  int64_t part = 0;

  __device__ __forceinline__ T deta(int64_t b, int64_t t, int64_t h) const {
    const T inverse = fast_exp(-eta.at(b, t, h));
    if (!dots) return cotangent.at(b, t, h) * inverse;
    double sum = 0;
    for (int k = 0; k < parts; ++k) sum += dots[k * part + (b * steps + t) * H + h];
    return -static_cast<T>(sum) * inverse * inverse;
  }
};

/// Adds this warp's rows of x to its columns n0 + lane + 32 m.
template <class T, SumsResult result>
__device__ __forceinline__ void add_rows(const SumsOperands<T>& s, int64_t b, int64_t h, int first, int n0,
                                         T (&sum)[sums_lane_columns]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int r = 0; r < sums_rows; ++r) {
    // In the order in which rows are visited later: a suffix starts at the last row.
    const int t = result == SumsResult::suffix ? first + sums_rows - 1 - r : first + r;
    if (t >= s.steps) continue;
    const T factor = result == SumsResult::suffix ? s.deta(b, t, h) : T(1), *row = s.x.row(b, h, t);
#pragma unroll
    for (int m = 0; m < sums_lane_columns; ++m) {
      const int n = n0 + lane + 32 * m;
      if (n < s.N) sum[m] += factor * row[n];
    }
  }
}

/// Sums of each chunk: blocks [B H chunks, column blocks].
template <class T, SumsResult result>
__global__ void chunk_sums_kernel(SumsOperands<T> s) {
  T* warp_sums = dynamic_shared<T>();  // [warps, columns]
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int c = static_cast<int>(blockIdx.x) % s.chunks, bh = static_cast<int>(blockIdx.x) / s.chunks;
  const int n0 = static_cast<int>(blockIdx.y) * sums_columns;
  T sum[sums_lane_columns] = {};
  add_rows<T, result>(s, bh / s.H, bh % s.H, c * sums_chunk + warp * sums_rows, n0, sum);
#pragma unroll
  for (int m = 0; m < sums_lane_columns; ++m) warp_sums[warp * sums_columns + lane + 32 * m] = sum[m];
  __syncthreads();
  const int n = static_cast<int>(threadIdx.x);
  if (n >= sums_columns || n0 + n >= s.N) return;
  T total = 0;
  for (int w = 0; w < sums_warps; ++w) {
    const int at = result == SumsResult::suffix ? sums_warps - 1 - w : w;
    total += warp_sums[at * sums_columns + n];
  }
  s.sums[(int64_t{blockIdx.x}) * s.N + n0 + n] = total;
}

template <class T, SumsResult result>
__global__ void running_sums_kernel(SumsOperands<T> s) {
  constexpr bool reverse = result == SumsResult::suffix;
  T *warp_sums = dynamic_shared<T>(), *base = warp_sums + sums_warps * sums_columns;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int c = static_cast<int>(blockIdx.x) % s.chunks, bh = static_cast<int>(blockIdx.x) / s.chunks;
  const int64_t b = bh / s.H, h = bh % s.H;
  const int first = c * sums_chunk + warp * sums_rows;
  T dots[sums_rows] = {};
  for (int n0 = 0; n0 < s.N; n0 += sums_columns) {
    __syncthreads();
    T sum[sums_lane_columns] = {};
    add_rows<T, result>(s, b, h, first, n0, sum);
#pragma unroll
    for (int m = 0; m < sums_lane_columns; ++m) warp_sums[warp * sums_columns + lane + 32 * m] = sum[m];
    const int n = static_cast<int>(threadIdx.x);
    if (n < sums_columns) {
      T total = 0;
      if (n0 + n < s.N) {
        const T* sums = s.sums + int64_t{bh} * s.chunks * s.N + n0 + n;
        if (reverse)
          for (int k = s.chunks - 1; k > c; --k) total += sums[int64_t{k} * s.N];
        else
          for (int k = 0; k < c; ++k) total += sums[int64_t{k} * s.N];
      }
      base[n] = total;
    }
    __syncthreads();
#pragma unroll
    for (int m = 0; m < sums_lane_columns; ++m) {
      const int at = lane + 32 * m;
      sum[m] = base[at];
      if (reverse)
        for (int w = sums_warps - 1; w > warp; --w) sum[m] += warp_sums[w * sums_columns + at];
      else
        for (int w = 0; w < warp; ++w) sum[m] += warp_sums[w * sums_columns + at];
    }
#pragma unroll
    for (int r = 0; r < sums_rows; ++r) {
      const int t = reverse ? first + sums_rows - 1 - r : first + r;
      if (t >= s.steps) continue;
      const T *row = s.x.row(b, h, t), *query = result == SumsResult::log_eta ? s.q.row(b, h, t) : nullptr;
      const T factor = result == SumsResult::log_eta ? T(1) : s.deta(b, t, h);
      T* to = result == SumsResult::log_eta ? nullptr : s.to.row(b, h, t);
#pragma unroll
      for (int m = 0; m < sums_lane_columns; ++m) {
        const int at = n0 + lane + 32 * m;
        if (at >= s.N) continue;
        sum[m] += reverse ? factor * row[at] : row[at];
        if (result == SumsResult::log_eta)
          dots[r] += query[at] * sum[m];
        else {
          const T value = reverse ? sum[m] : factor * sum[m];
          to[at] = s.dots ? to[at] + value : value;
        }
      }
    }
  }
  if (result != SumsResult::log_eta) return;
#pragma unroll
  for (int r = 0; r < sums_rows; ++r) {
    for (int d = 16; d > 0; d /= 2) dots[r] += __shfl_xor_sync(0xFFFFFFFFu, dots[r], d);
    if (lane == 0 && first + r < s.steps) s.log_eta.at(b, first + r, h) = log(dots[r]);
  }
}

template <class T, SumsResult result>
void running_sums(const Context& ctx, int64_t B, const SumsOperands<T>& s) {
  const auto items = static_cast<unsigned>(B * s.H * s.chunks);
  if (items == 0) return;
  const unsigned columns = blocks_for(s.N, sums_columns), threads = sums_warps * 32;
  launch(ctx, chunk_sums_kernel<T, result>, dim3(items, columns), threads,
         sums_warps * sums_columns * sizeof(T), s);
  launch(ctx, running_sums_kernel<T, result>, items, threads, (sums_warps + 1) * sums_columns * sizeof(T), s);
}

struct NoRow {
  ET_HD void row(int64_t, int64_t, int64_t) const {}
};
/// y exp(−log η); dlog η = −dout·out.
template <class T>
struct DivideByEta : NoRow {
  PerStep<const T> eta;
  PerStep<T> dlog_eta;
  ET_HD T factor(int64_t b, int64_t t, int64_t h) const { return fast_exp(-eta.at(b, t, h)); }
  ET_HD void dot(int64_t b, int64_t t, int64_t h, T value) const { dlog_eta.at(b, t, h) = -value; }
};

}  // namespace
}  // namespace eigentrace::kernels
#endif
