#pragma once
// y of one chunk and head, or of a slice of its columns: the second kernel of ssd_chunks.h. Two barriers: the
// operands are there; the pairs' matrix is there. The state is read where it lies.
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/kernels/ssd_tiles.cuh"

namespace eigentrace::kernels {
namespace {

struct OutputShared {
  ChunkSteps steps;
  float pair_sums[2][ssd_chunk], before[ssd_chunk];  // η_i of this chunk's halves, of chunks before
};

/// Blocks [chunks B H, slices]: late chunks first, since ssd_states_kernel has left them in the cache.
template <Precision precision>
__global__ void __launch_bounds__(ssd_threads, 2) ssd_outputs_kernel(const __grid_constant__ SsdPass s) {
  using F = Fragments<precision>;
  constexpr int m_ld = ssd_chunk;
  auto& f = *dynamic_shared<OutputShared>();
  const int ld = row_room(s.Np);
  float *q = reinterpret_cast<float*>(&f + 1), *k = q + ssd_chunk * ld, *v = k + ssd_chunk * ld,
        *m = v + ssd_chunk * s.slice;
  const Lane lane;
  const int tid = static_cast<int>(threadIdx.x), warp = tid / 32;
  const int sequences = s.B * s.H, c = s.chunks - 1 - static_cast<int>(blockIdx.x) / sequences;
  const int sequence = static_cast<int>(blockIdx.x) % sequences, b = sequence / s.H, h = sequence % s.H,
            group = h * s.G / s.H;
  const int64_t t0 = int64_t{c} * ssd_chunk;
  const int n = s.steps - t0 < ssd_chunk ? static_cast<int>(s.steps - t0) : ssd_chunk;
  const int p0 = static_cast<int>(blockIdx.y) * s.slice;
  const int width = s.P - p0 < s.slice ? s.P - p0 : s.slice;
  const float* state = s.states + (int64_t{sequence} * s.chunks + c) * s.elements;

  stage_rows(q, ld, s.q.row(b, group, t0), s.q.time, n, s.N, s.Np, s.aligned);
  stage_rows(k, ld, s.k.row(b, group, t0), s.k.time, n, s.N, s.Np, s.aligned);
  stage_rows(v, s.slice, s.v.row(b, h, t0) + p0, s.v.time, n, width, s.slice, s.aligned);
  copy_commit();
  if (c > 0) prefetch(state, static_cast<int64_t>(sizeof(float)) * s.elements);
  if (tid < ssd_chunk) f.steps.load(s, b, h, c, tid);
  copy_wait<0>();
  __syncthreads();

  {  // M = D w ∘ (q kᵀ), 16 × 32 a warp
    const int row0 = warp / 2 * 16, column0 = warp % 2 * 32, rows[2] = {row0 + lane.g, row0 + lane.g + 8};
    if (column0 < row0 + 16) {
      float pair[4][4] = {};
      multiply_tile<F, 4>(
          pair, 0, s.Np, [&](auto& a, int k0) { F::a_rows(a, q + row0 * ld, ld, k0, lane); },
          [&](auto& x, int j, int k0) { F::b_rows(x, k + (column0 + 8 * j) * ld, ld, k0, lane); });
      float sums[2] = {};
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int column = column0 + 8 * j + 2 * lane.t;
          float(&p)[4] = pair[j];
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float x = p[2 * r + e];
            if (s.decays) x *= f.steps.between(rows[r], column + e);
            if (s.weighs) x *= f.steps.weight[column + e];
            p[2 * r + e] = column + e <= rows[r] ? x : 0.0f;
            sums[r] += p[2 * r + e];
          }
          *reinterpret_cast<float2*>(m + rows[r] * m_ld + (column ^ lane.of_g)) = {p[2 * r], p[2 * r + 1]};
        }
      if (s.linear)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const float sum = sum_over_columns(sums[r]);
          if (lane.t == 0) f.pair_sums[warp % 2][rows[r]] = sum;
        }
    }
  }
  if (s.linear) {
    const int row = tid / 4;
    float sum = 0;
    if (c > 0)
      for (int e = tid % 4; e < s.Np; e += 4) sum += q[swizzled(row, e, ld)] * state[s.Np * s.Pp + e];
    sum = sum_over_columns(sum);
    if (tid % 4 == 0) f.before[row] = sum;
  }
  __syncthreads();

  const auto eta = [&](int i) {
    return f.pair_sums[0][i] + (i < 32 ? 0.0f : f.pair_sums[1][i]) + f.before[i];
  };
  if (s.linear && blockIdx.y == 0 && tid < n) s.log_eta.at(b, t0 + tid, h) = logf(eta(tid));
  const float skip = s.skip.data ? s.skip.at(0, 0, h) : 0.0f;
  // Tiles of 16 × 32; every second one of a warp has the rows that make its causal work even.
  for (int tile = warp; tile < s.slice / 8; tile += ssd_threads / 32) {
    const int row_tile = tile / (ssd_threads / 32) % 2 ? 3 - tile % 4 : tile % 4, row0 = 16 * row_tile,
              column0 = tile / 4 * 32, rows[2] = {row0 + lane.g, row0 + lane.g + 8};
    if (row0 >= n) continue;
    float d[4][4] = {};
    if (c > 0) {
      multiply_tile<F, 4>(
          d, 0, s.Np, [&](auto& a, int k0) { F::a_rows(a, q + row0 * ld, ld, k0, lane); },
          [&](auto& x, int j, int k0) { F::b_columns_far(x, state, s.Pp, p0 + column0 + 8 * j, k0, lane); });
      if (s.decays)
#pragma unroll
        for (int r = 0; r < 2; ++r)
#pragma unroll
          for (int j = 0; j < 4; ++j)
            d[j][2 * r] *= f.steps.fade[rows[r]], d[j][2 * r + 1] *= f.steps.fade[rows[r]];
    }
    multiply_tile<F, 4>(
        d, 0, row0 + 16, [&](auto& a, int k0) { F::a_rows(a, m + row0 * m_ld, m_ld, k0, lane); },
        [&](auto& x, int j, int k0) { F::b_columns(x, v, s.slice, column0 + 8 * j, k0, lane); });
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float factor = s.linear ? 1 / eta(rows[r]) : f.steps.row[rows[r]];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        d[j][2 * r] *= factor, d[j][2 * r + 1] *= factor;
        if (s.skip.data) {
          const float2 own = two_at(v + rows[r] * s.slice + ((column0 + 8 * j + 2 * lane.t) ^ lane.of_g));
          d[j][2 * r] += skip * own.x, d[j][2 * r + 1] += skip * own.y;
        }
      }
    }
    store_tile<4>(d, s.y, b, h, t0, n, row0, p0 + column0, s.P, s.even, lane);
  }
}

}  // namespace

template <Precision precision>
void launch_outputs(const Context& ctx, const SsdPass& s) {
  const dim3 grid(static_cast<unsigned>(s.B * s.H * s.chunks), static_cast<unsigned>(s.Pp / s.slice));
  const size_t shared =
      sizeof(OutputShared) +
      sizeof(float) * static_cast<size_t>(ssd_chunk * (2 * row_room(s.Np) + s.slice + ssd_chunk));
  launch(ctx, ssd_outputs_kernel<precision>, grid, ssd_threads, shared, s);
}

}  // namespace eigentrace::kernels
#endif
