#pragma once
// Every gradient of one chunk and of all heads of a group: the third kernel of ssd_chunks.h. Half of the
// warps hold dq in registers, the other half dk; all of them make the pairs' matrices and dv. Between
// barriers, a head:
//   q, k, v, dy and the factors are there
//   A, G; E's sums; S's part of dq and R's part of dk, with their rows' products with q and k
//   the matrices of pairs take v's place (v is read)
//   dv; after the last head dq and dk
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/kernels/ssd_tiles.cuh"

namespace eigentrace::kernels {
namespace {

struct GradientShared {
  double ends[4][ssd_chunk],
      starts[4][ssd_chunk];       // E's sums over rows of column parts, columns of row tiles
  double passed[16], skipped[4];  // ⟨S, R⟩ a warp; Σ G_ii a row tile
  ChunkSteps steps;
  float columns[4][ssd_chunk];                             // Σ_i D_ij A_ij G_ij
  float from_state[2][ssd_chunk], to_state[2][ssd_chunk];  // parts of columns of dq, dk
  float deta[ssd_chunk];
};

/// dlog_a_t = Σ_{i≥t} (ends − starts + from state) + Σ_{j<t} to state + passed, by one warp.
__device__ __forceinline__ void assemble_flow(const GradientShared& f, const SsdPass& s, int parts,
                                              int part_width, int warps, int b, int h, int c, int n) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  double net[2], passed[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int i = 2 * lane + e;
    double ends = 0, starts = 0;
    for (int part = 0; part * part_width <= i / 16 * 16; ++part) ends += f.ends[part][i];
    for (int tile = i / 16; tile < 4; ++tile) starts += f.starts[tile][i];
    float from = 0, to = 0;
    for (int part = 0; part < parts; ++part) from += f.from_state[part][i], to += f.to_state[part][i];
    net[e] = i < n ? ends - starts + static_cast<double>(from) : 0;
    passed[e] = i < n ? static_cast<double>(to * f.steps.weight[i]) : 0;
  }
  double after = net[0] + net[1], before = passed[0] + passed[1], over = 0;
#pragma unroll
  for (unsigned d = 1; d < 32; d *= 2) {
    const double x = __shfl_down_sync(0xFFFFFFFFu, after, d), y = __shfl_up_sync(0xFFFFFFFFu, before, d);
    if (lane + static_cast<int>(d) < 32) after += x;
    if (lane >= static_cast<int>(d)) before += y;
  }
  const double rest = __shfl_down_sync(0xFFFFFFFFu, after, 1u),
               start = __shfl_up_sync(0xFFFFFFFFu, before, 1u);
  for (int w = 0; w < warps; ++w) over += f.passed[w];
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

/// A warp holds 16 rows × 8 nt columns of dq or of dk; grouped: heads share q and k. Blocks [chunks B G]:
/// early chunks first, since ssd_states_kernel has left them in the cache.
template <Precision precision, int warps, int nt, bool grouped>
__global__ void __launch_bounds__(32 * warps, warps == 8 ? 2 : 1)
    ssd_gradients_kernel(const __grid_constant__ SsdPass s) {
  using F = Fragments<precision>;
  constexpr int pair_columns = 256 / warps, pn = pair_columns / 8, parts = warps / 8, m_ld = ssd_chunk;
  auto& f = *dynamic_shared<GradientShared>();
  const int ld = row_room(s.Np), v_ld = s.Pp;
  float *q = reinterpret_cast<float*>(&f + 1), *k = q + ssd_chunk * ld, *dy = k + ssd_chunk * ld,
        *v = dy + ssd_chunk * v_ld, *m = v, *w = v + ssd_chunk * m_ld;
  const Lane lane;
  const int tid = static_cast<int>(threadIdx.x), warp = tid / 32;
  const int sequences = s.B * s.G, c = static_cast<int>(blockIdx.x) / sequences;
  const int b = static_cast<int>(blockIdx.x) % sequences / s.G, group = static_cast<int>(blockIdx.x) % s.G;
  const int per_group = grouped ? s.H / s.G : 1;
  const int64_t t0 = int64_t{c} * ssd_chunk;
  const int n = s.steps - t0 < ssd_chunk ? static_cast<int>(s.steps - t0) : ssd_chunk;
  const bool has_before = c > 0 && s.states, has_after = c + 1 < s.chunks && s.later;
  const bool flows = s.dlog_a.data, factors = s.decays || s.weighs;

  // The warp's tile of pairs, and its tile of dq or of dk.
  const int pair_row = warp / (warps / 4) * 16, pair_column = warp % (warps / 4) * pair_columns;
  const bool pairs = pair_column <= pair_row;
  const int pair_rows[2] = {pair_row + lane.g, pair_row + lane.g + 8};
  const bool of_keys = warp >= warps / 2;
  const int part = warp % (warps / 2) / 4, row0 = warp % 4 * 16, column0 = part * 8 * nt;
  const int rows[2] = {row0 + lane.g, row0 + lane.g + 8};
  float A[pn][4] = {}, W[pn][4] = {}, sum[nt][4] = {};

  stage_rows(q, ld, s.q.row(b, group, t0), s.q.time, n, s.N, s.Np, s.aligned);
  stage_rows(k, ld, s.k.row(b, group, t0), s.k.time, n, s.N, s.Np, s.aligned);
  for (int each = 0; each < per_group; ++each) {
    const int h = group * per_group + each;
    const bool last = each + 1 == per_group;
    const int64_t item = (int64_t{b} * s.H + h) * s.chunks + c;
    const float *before = s.states + item * s.elements, *after = s.later + item * s.Np * s.Pp;
    stage_rows(dy, v_ld, s.dy.row(b, h, t0), s.dy.time, n, s.P, s.Pp, s.aligned);
    stage_rows(v, v_ld, s.v.row(b, h, t0), s.v.time, n, s.P, s.Pp, s.aligned);
    copy_commit();
    if (tid < ssd_chunk) f.steps.load(s, b, h, c, tid);
    if (flows) {
      double passed = 0;
      if (has_before && has_after)
        for (int e = 4 * tid; e < s.Np * s.Pp; e += 4 * 32 * warps) {
          const float4 x = *reinterpret_cast<const float4*>(before + e),
                       y = *reinterpret_cast<const float4*>(after + e);
          passed += static_cast<double>(x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w);
        }
      passed = s.decays ? static_cast<double>(s.f.decay[item]) * passed : passed;
      passed = sum_over_rows(sum_over_columns(passed));
      if (lane.g + lane.t == 0) f.passed[warp] = passed;
    } else {
      const int64_t bytes = int64_t{4} * s.Np * s.Pp;
      if (has_before) prefetch(before, bytes);
      if (has_after) prefetch(after, bytes);
    }
    copy_wait<0>();
    __syncthreads();

    float M[pn][4] = {};
    if (pairs) {
      if (each == 0)
        multiply_tile<F, pn>(
            A, 0, s.Np, [&](auto& a, int k0) { F::a_rows(a, q + pair_row * ld, ld, k0, lane); },
            [&](auto& x, int j, int k0) { F::b_rows(x, k + (pair_column + 8 * j) * ld, ld, k0, lane); });
      multiply_tile<F, pn>(
          M, 0, s.Pp, [&](auto& a, int k0) { F::a_rows(a, dy + pair_row * v_ld, v_ld, k0, lane); },
          [&](auto& x, int j, int k0) { F::b_rows(x, v + (pair_column + 8 * j) * v_ld, v_ld, k0, lane); });
      double ends[2] = {}, diagonal = 0;
#pragma unroll
      for (int j = 0; j < pn; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int column = pair_column + 8 * j + 2 * lane.t + e;
          double starts = 0;
          float direct = 0;
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const int i = 2 * r + e;
            if (s.dskip && column == pair_rows[r]) diagonal += static_cast<double>(M[j][i]);
            const bool kept = column <= pair_rows[r];
            float a = A[j][i], g = M[j][i];
            if (s.decays) {
              const float decay = f.steps.between(pair_rows[r], column);
              a *= decay, g *= decay;
            }
            direct += kept ? a * M[j][i] : 0.0f;
            if (s.weighs) g *= f.steps.weight[column];
            g = kept ? g : 0.0f;
            W[j][i] += g;
            if (flows && column < pair_rows[r]) {
              const auto product = static_cast<double>(g * A[j][i]);
              ends[r] += product, starts += product;
            }
            M[j][i] = kept ? a * f.steps.row[pair_rows[r]] : 0.0f;
          }
          if (flows) {
            starts = sum_over_rows(starts);
            if (lane.g == 0) f.starts[pair_row / 16][column] = starts;
          }
          if (s.dw.data) {
            direct = sum_over_rows(direct);
            if (lane.g == 0) f.columns[pair_row / 16][column] = direct;
          }
        }
      if (flows)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          ends[r] = sum_over_columns(ends[r]);
          if (lane.t == 0) f.ends[pair_column / pair_columns][pair_rows[r]] = ends[r];
        }
      if (s.dskip && pair_row < pair_column + pair_columns) {
        diagonal = sum_over_rows(sum_over_columns(diagonal));
        if (lane.g + lane.t == 0) f.skipped[pair_row / 16] = diagonal;
      }
    }
    {  // dq: dy Sᵀ; dk: v Rᵀ
      float d[nt][4] = {};
      const float *x = of_keys ? v : dy, *state = of_keys ? after : before;
      const bool there = of_keys ? has_after : has_before;
      if (there) {
        multiply_tile<F, nt>(
            d, 0, s.Pp, [&](auto& a, int k0) { F::a_rows(a, x + row0 * v_ld, v_ld, k0, lane); },
            [&](auto& y, int j, int k0) {
              F::b_rows_far(y, state + (column0 + 8 * j) * s.Pp, s.Pp, k0, lane);
            });
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const float factor = of_keys ? f.steps.to_end[rows[r]] : f.steps.fade[rows[r]],
                      weight = of_keys ? f.steps.weight[rows[r]] : 1.0f;
          float dot = 0;
#pragma unroll
          for (int j = 0; j < nt; ++j) {
            const float2 own =
                two_at((of_keys ? k : q) + rows[r] * ld + ((column0 + 8 * j + 2 * lane.t) ^ lane.of_g));
            d[j][2 * r] *= factor, d[j][2 * r + 1] *= factor;
            dot += d[j][2 * r] * own.x + d[j][2 * r + 1] * own.y;
            sum[j][2 * r] += weight * d[j][2 * r], sum[j][2 * r + 1] += weight * d[j][2 * r + 1];
          }
          if (factors) {
            dot = sum_over_columns(dot);
            if (lane.t == 0) (of_keys ? f.to_state : f.from_state)[part][rows[r]] = dot;
          }
        }
      } else if (factors && lane.t == 0) {
#pragma unroll
        for (int r = 0; r < 2; ++r) (of_keys ? f.to_state : f.from_state)[part][rows[r]] = 0;
      }
    }
    __syncthreads();

    if (pairs)
#pragma unroll
      for (int j = 0; j < pn; ++j)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int at = pair_rows[r] * m_ld + ((pair_column + 8 * j + 2 * lane.t) ^ lane.of_g);
          *reinterpret_cast<float2*>(m + at) = {M[j][2 * r], M[j][2 * r + 1]};
          if (last) *reinterpret_cast<float2*>(w + at) = {W[j][2 * r], W[j][2 * r + 1]};
        }
    __syncthreads();

    if (flows && warp == warps - 1) assemble_flow(f, s, parts, pair_columns, warps, b, h, c, n);
    if (s.dw.data && tid < n) {
      float sum_of = 0;
      for (int tile = tid / 16; tile < 4; ++tile) sum_of += f.columns[tile][tid];
      for (int p = 0; p < parts; ++p) sum_of += f.to_state[p][tid];
      s.dw.at(b, t0 + tid, h) = sum_of;
    }
    if (s.dskip && tid == 0) s.dskip[item] = f.skipped[0] + f.skipped[1] + f.skipped[2] + f.skipped[3];
    if (s.dv.data) {
      const float skip = s.skip.data ? s.skip.at(0, 0, h) : 0.0f;
      for (int tile = warp; tile < s.Pp / 8; tile += warps) {
        const int row_tile = tile / warps % 2 ? 3 - tile % 4 : tile % 4, v_row = 16 * row_tile,
                  v_column = tile / 4 * 32, v_rows[2] = {v_row + lane.g, v_row + lane.g + 8};
        if (v_row >= n) continue;
        float d[4][4] = {};
        if (has_after) {
          multiply_tile<F, 4>(
              d, 0, s.Np, [&](auto& a, int k0) { F::a_rows(a, k + v_row * ld, ld, k0, lane); },
              [&](auto& x, int j, int k0) { F::b_columns_far(x, after, s.Pp, v_column + 8 * j, k0, lane); });
          if (s.decays)
#pragma unroll
            for (int r = 0; r < 2; ++r)
#pragma unroll
              for (int j = 0; j < 4; ++j)
                d[j][2 * r] *= f.steps.to_end[v_rows[r]], d[j][2 * r + 1] *= f.steps.to_end[v_rows[r]];
        }
        multiply_tile<F, 4>(
            d, v_row, ssd_chunk,
            [&](auto& a, int k0) { F::template a_columns<false>(a, m, m_ld, v_row, k0, nullptr, lane); },
            [&](auto& x, int j, int k0) { F::b_columns(x, dy, v_ld, v_column + 8 * j, k0, lane); });
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const float weight = f.steps.weight[v_rows[r]];
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const float2 own =
                s.skip.data ? two_at(dy + v_rows[r] * v_ld + ((v_column + 8 * j + 2 * lane.t) ^ lane.of_g))
                            : float2{0, 0};
            d[j][2 * r] = weight * d[j][2 * r] + skip * own.x;
            d[j][2 * r + 1] = weight * d[j][2 * r + 1] + skip * own.y;
          }
        }
        store_tile<4>(d, s.dv, b, h, t0, n, v_row, v_column, s.P, s.even, lane);
      }
    }
    if (!last) __syncthreads();
  }

  // dq: W k, dk: Wᵀ (r q)
  if (of_keys)
    multiply_tile<F, nt>(
        sum, row0, ssd_chunk,
        [&](auto& a, int k0) { F::template a_columns<true>(a, w, m_ld, row0, k0, f.steps.row, lane); },
        [&](auto& x, int j, int k0) { F::b_columns(x, q, ld, column0 + 8 * j, k0, lane); });
  else
    multiply_tile<F, nt>(
        sum, 0, row0 + 16, [&](auto& a, int k0) { F::a_rows(a, w + row0 * m_ld, m_ld, k0, lane); },
        [&](auto& x, int j, int k0) { F::b_columns(x, k, ld, column0 + 8 * j, k0, lane); });
  if (s.row.from.data) {  // a normaliser: as many heads as groups
    const int h = group;
    if (!of_keys)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float dot = 0;
#pragma unroll
        for (int j = 0; j < nt; ++j) {
          const float2 own = two_at(q + rows[r] * ld + ((column0 + 8 * j + 2 * lane.t) ^ lane.of_g));
          dot += sum[j][2 * r] * own.x + sum[j][2 * r + 1] * own.y;
          sum[j][2 * r] *= f.steps.row[rows[r]], sum[j][2 * r + 1] *= f.steps.row[rows[r]];
        }
        dot = sum_over_columns(dot);
        if (lane.t == 0) f.from_state[part][rows[r]] = dot;
      }
    __syncthreads();
    if (tid < ssd_chunk) {
      float delta = 0;
      for (int p = 0; p < parts; ++p) delta += f.from_state[p][tid];
      if (s.delta && tid < n) s.delta[(int64_t{b} * s.steps + t0 + tid) * s.H + h] = delta;
      f.deta[tid] = -f.steps.row[tid] * f.steps.row[tid] * delta;
    }
    if (s.linear) {
      __syncthreads();
      const float* z = s.states + ((int64_t{b} * s.H + h) * s.chunks + c) * s.elements + s.Np * s.Pp;
      float d[nt][4] = {};
      multiply_tile<F, nt>(
          d, of_keys ? row0 : 0, of_keys ? ssd_chunk : row0 + 16,
          [&](auto& a, int k0) {
            F::a_of(a, k0, lane, [&](int r, int i) {
              if (of_keys) return i >= rows[r] ? f.deta[i] : 0.0f;
              return i <= rows[r] ? 1.0f : 0.0f;
            });
          },
          [&](auto& x, int j, int k0) { F::b_columns(x, of_keys ? q : k, ld, column0 + 8 * j, k0, lane); });
#pragma unroll
      for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int j = 0; j < nt; ++j)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int column = column0 + 8 * j + 2 * lane.t + e;
            const float x = d[j][2 * r + e];
            if (of_keys) {
              if (rows[r] == 0 && column < s.N)
                s.tails[((int64_t{b} * s.H + h) * s.chunks + c) * s.N + column] = x;
              sum[j][2 * r + e] += x;
            } else {
              sum[j][2 * r + e] += f.deta[rows[r]] * (has_before ? x + z[column] : x);
            }
          }
    }
  }
  const Heads<float>& to = of_keys ? s.dk : s.dq;
  if (to.data) store_tile<nt>(sum, to, b, group, t0, n, row0, column0, s.N, s.even, lane);
}

}  // namespace

template <Precision precision>
void launch_gradients(const Context& ctx, const SsdPass& s) {
  const auto grid = static_cast<unsigned>(s.B * s.G * s.chunks);
  const int pairs = 2 * ssd_chunk, of_v = s.Pp > pairs ? s.Pp : pairs;
  const size_t shared = sizeof(GradientShared) +
                        sizeof(float) * static_cast<size_t>(ssd_chunk * (2 * row_room(s.Np) + s.Pp + of_v));
  const bool grouped = s.G < s.H;
  if (s.Np == 16)
    launch(ctx, ssd_gradients_kernel<precision, 8, 2, false>, grid, 256, shared, s);
  else if (s.Np == 64 && !grouped)
    launch(ctx, ssd_gradients_kernel<precision, 16, 4, false>, grid, 512, shared, s);
  else if (s.Np == 64)
    launch(ctx, ssd_gradients_kernel<precision, 16, 4, true>, grid, 512, shared, s);
  else if (!grouped)
    launch(ctx, ssd_gradients_kernel<precision, 16, 8, false>, grid, 512, shared, s);
  else
    launch(ctx, ssd_gradients_kernel<precision, 16, 8, true>, grid, 512, shared, s);
}

}  // namespace eigentrace::kernels
#endif
