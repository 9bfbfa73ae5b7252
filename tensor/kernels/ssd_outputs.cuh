#pragma once
// y of one chunk and head, or of a slice of its columns: the second kernel of ssd_chunks.h. Two barriers: the
// operands are there; the pairs' matrix is there. The state comes to shared memory where there is room.
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/kernels/ssd_tiles.cuh"

namespace eigentrace::kernels {
namespace {

struct OutputShared {
  ChunkSteps steps;
  float pair_sums[2][ssd_chunk], before[ssd_chunk];  // η_i of this chunk's halves, of chunks before
};

/// Blocks [chunks B H, slices]: late chunks first, since ssd_states_kernel has left them in the cache.
template <Precision precision, int Np, int slice>
__global__ void __launch_bounds__(ssd_threads, Np == 16 ? 3 : 2)
    ssd_outputs_kernel(const __grid_constant__ SsdPass s) {
  using F = Fragments<precision>;
  constexpr bool late = Np == 128, m_takes_k = Np == 64;  // late: the state takes k's place
  constexpr int m_ld = ssd_chunk, ld = Np < 32 ? 32 : Np, threads = ssd_threads;
  auto& f = *dynamic_shared<OutputShared>();
  float *q = reinterpret_cast<float*>(&f + 1), *k = q + ssd_chunk * ld, *v = k + ssd_chunk * ld,
        *state_room = late ? k : v + ssd_chunk * slice,
        *m = m_takes_k ? k : v + ssd_chunk * slice + (late ? 0 : Np * slice);
  const Lane lane;
  const int tid = static_cast<int>(threadIdx.x), warp = tid / 32;
  const int sequences = s.B * s.H, c = s.chunks - 1 - static_cast<int>(blockIdx.x) / sequences;
  const int sequence = static_cast<int>(blockIdx.x) % sequences, b = sequence / s.H, h = sequence % s.H,
            group = h * s.G / s.H;
  const int64_t t0 = int64_t{c} * ssd_chunk;
  const int n = s.steps - t0 < ssd_chunk ? static_cast<int>(s.steps - t0) : ssd_chunk;
  const int p0 = static_cast<int>(blockIdx.y) * slice;
  const int width = s.P - p0 < slice ? s.P - p0 : slice;
  constexpr int pitch = Np == 128 ? 128 : slice;
  const float* state = s.states + (int64_t{sequence} * s.chunks + c) * s.elements;

  stage_rows<threads, Np, ld>(q, s.q.row(b, group, t0), s.q.time, n, s.N, s.aligned);
  stage_rows<threads, Np, ld>(k, s.k.row(b, group, t0), s.k.time, n, s.N, s.aligned);
  copy_commit();
  stage_rows<threads, slice, slice>(v, s.v.row(b, h, t0) + p0, s.v.time, n, width, s.aligned);
  if constexpr (!late) {
    if (c > 0) stage_state<threads, Np, slice>(state_room, state, pitch);
  } else {
    if (c > 0) prefetch(state, int64_t{4} * Np * pitch);
  }
  copy_commit();
  if (tid < ssd_chunk) f.steps.load(s, b, h, c, tid);
  copy_wait<1>();
  __syncthreads();

  {  // M = D w ∘ (q kᵀ), 16 × 32 a warp
    const int row0 = warp / 2 * 16, column0 = warp % 2 * 32, rows[2] = {row0 + lane.g, row0 + lane.g + 8};
    float pair[4][4] = {};
    if (column0 < row0 + 16)
      multiply_tile<F, 4, Np>(
          pair, [&](auto& a, int kb, int i) { F::template a_rows<ld>(a, q + row0 * ld + kb, i, 0, lane); },
          [&](auto& x, int j, int kb, int i) {
            F::template b_rows<ld>(x, k + (column0 + 8 * j) * ld + kb, i, lane);
          });
    if (m_takes_k || late) __syncthreads();
    if constexpr (late) {
      if (c > 0) stage_state<threads, Np, slice>(state_room, state + p0, pitch);
      copy_commit();
    }
    if (column0 < row0 + 16) {
      float sums[2] = {};
      const auto mix = [&]<bool full>() {
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const int column = column0 + 8 * j + 2 * lane.t;
            float p[2] = {pair[j][2 * r], pair[j][2 * r + 1]};
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              if constexpr (full) p[e] *= f.steps.between(rows[r], column + e) * f.steps.weight[column + e];
              p[e] = column + e <= rows[r] ? p[e] : 0.0f;
              sums[r] += p[e];
            }
            *reinterpret_cast<float2*>(m + rows[r] * m_ld + (column ^ lane.of_g)) = {p[0], p[1]};
          }
      };
      if (s.decays || s.weighs)
        mix.template operator()<true>();
      else
        mix.template operator()<false>();
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
      for (int e = tid % 4; e < Np; e += 4) sum += q[swizzled(row, e, ld)] * state[Np * pitch + e];
    sum = sum_over_columns(sum);
    if (tid % 4 == 0) f.before[row] = sum;
  }
  copy_wait<0>();
  __syncthreads();

  const auto eta = [&](int i) {
    return f.pair_sums[0][i] + (i < 32 ? 0.0f : f.pair_sums[1][i]) + f.before[i];
  };
  if (s.linear && blockIdx.y == 0 && tid < n) s.log_eta.at(b, t0 + tid, h) = logf(eta(tid));
  const float skip = s.skip.data ? s.skip.at(0, 0, h) : 0.0f;
  // Tiles of 16 × 32; every second one of a warp has the rows that make its causal work even.
  for (int tile = warp; tile < slice / 8; tile += ssd_threads / 32) {
    const int row_tile = tile / (ssd_threads / 32) % 2 ? 3 - tile % 4 : tile % 4, row0 = 16 * row_tile,
              column0 = tile / 4 * 32, rows[2] = {row0 + lane.g, row0 + lane.g + 8};
    if (row0 >= n) continue;
    float d[4][4] = {};
    if (c > 0) {
      multiply_tile<F, 4, Np>(
          d, [&](auto& a, int kb, int i) { F::template a_rows<ld>(a, q + row0 * ld + kb, i, 0, lane); },
          [&](auto& x, int j, int kb, int i) {
            F::template b_columns<slice>(x, state_room + (kb + 8 * i) * slice + column0, j, 0, lane);
          });
      if (s.decays)
#pragma unroll
        for (int r = 0; r < 2; ++r)
#pragma unroll
          for (int j = 0; j < 4; ++j)
            d[j][2 * r] *= f.steps.fade[rows[r]], d[j][2 * r + 1] *= f.steps.fade[rows[r]];
    }
    multiply_range<F, 4>(
        d, 0, row0 + 16,
        [&](auto& a, int kb, int i) {
          F::template a_rows<m_ld>(a, m + row0 * m_ld + kb / 32 * 32, i, kb % 32, lane);
        },
        [&](auto& x, int j, int kb, int i) {
          F::template b_columns<slice>(x, v + (kb + 8 * i) * slice + column0, j, 0, lane);
        });
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float factor = s.linear ? 1 / eta(rows[r]) : f.steps.row[rows[r]];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        d[j][2 * r] *= factor, d[j][2 * r + 1] *= factor;
        if (s.skip.data) {
          const float2 own = two_at(v + rows[r] * slice + ((column0 + 8 * j + 2 * lane.t) ^ lane.of_g));
          d[j][2 * r] += skip * own.x, d[j][2 * r + 1] += skip * own.y;
        }
      }
    }
    if constexpr (Np == 16)
      if (s.mask.drops) mask_tile(d, s.mask, b * int64_t{s.steps} + t0 + rows[0], h, p0 + column0, lane);
    store_tile<4>(d, s.y, b, h, t0, n, row0, p0 + column0, s.P, s.even, lane);
  }
}

}  // namespace

template <Precision precision>
void launch_outputs(const Context& ctx, const SsdPass& s) {
  if (precision == Precision::tf32 && launch_outputs_wgmma(ctx, s)) return;
  const dim3 grid(static_cast<unsigned>(s.B * s.H * s.chunks), static_cast<unsigned>(s.Pp / s.slice));
  const auto start = [&]<int Np, int slice>() {
    constexpr int rows = 2 * (Np < 32 ? 32 : Np) + slice + (Np == 64 ? 0 : ssd_chunk),
                  of_state = Np <= 64 ? Np * slice : 0;
    launch(ctx, ssd_outputs_kernel<precision, Np, slice>, grid, ssd_threads,
           sizeof(OutputShared) + sizeof(float) * (ssd_chunk * rows + of_state), s);
  };
  if (s.Np == 16)
    s.slice == 32 ? start.template operator()<16, 32>() : start.template operator()<16, 128>();
  else if (s.Np == 128)
    start.template operator()<128, 64>();
  else if (s.slice == 32)
    start.template operator()<64, 32>();
  else
    s.slice == 64 ? start.template operator()<64, 64>() : start.template operator()<64, 128>();
}

}  // namespace eigentrace::kernels
#endif
