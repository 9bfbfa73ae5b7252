#pragma once
// Every gradient of one chunk and of all heads of a group: the third kernel of ssd_chunks.h, on tensor
// cores for N > 16. Half of the eight warps hold dq in registers, the other half dk; all of them make the
// pairs' matrices and dv. The pairs' matrix M = D ∘ A r that dv needs comes from q and k alone, so it is
// there before a head begins; from then on each slice of P columns of v, dy, S and R is read once, in one
// phase between two barriers:
//   G += dy vᵀ, S's part of dq += dy Sᵀ, R's part of dk += v Rᵀ, ⟨S, R⟩, and the slice of dv = Mᵀ dy + k R
// while later slices, of the next head too, are on their way. After a head's last slice W grows by D w ∘ G,
// and the next head's M is made; after the last head dq and dk take W k and Wᵀ q.
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/kernels/ssd_gradients_whole.cuh"
#include "tensor/kernels/ssd_head.cuh"

namespace eigentrace::kernels {
namespace {

/// A warp holds 16 rows × 8 nt columns of dq or of dk; grouped: heads share q and k. Blocks [chunks B G]:
/// early chunks first, since ssd_states_kernel has left them in the cache.
template <Precision precision, int Np, int slice, int stages, bool grouped>
__global__ void __launch_bounds__(256, 1) ssd_gradients_kernel(const __grid_constant__ SsdPass s) {
  using F = Fragments<precision>;
  using Plan = GradientPlan<Np, slice, stages, grouped>;
  constexpr int warps = Plan::warps, threads = Plan::threads, nt = Np / 8, ld = Plan::ld;
  constexpr int pair_columns = 256 / warps, pn = pair_columns / 8, m_ld = ssd_chunk;
  constexpr int vn = slice / (2 * warps);
  auto& f = *dynamic_shared<typename Plan::Shared>();
  float *q = reinterpret_cast<float*>(&f + 1), *k = q + Plan::k_at, *m = q + Plan::m_at;
  const Lane lane;
  const int tid = static_cast<int>(threadIdx.x);
  const int warp = __shfl_sync(0xFFFFFFFFu, tid / 32, 0);  // so that the compiler knows it is the warp's
  const int sequences = s.B * s.G, c = static_cast<int>(blockIdx.x) / sequences;
  const int b = static_cast<int>(blockIdx.x) % sequences / s.G, group = static_cast<int>(blockIdx.x) % s.G;
  const int per_group = grouped ? s.H / s.G : 1;
  const int64_t t0 = int64_t{c} * ssd_chunk;
  const int n = s.steps - t0 < ssd_chunk ? static_cast<int>(s.steps - t0) : ssd_chunk;
  const bool has_before = c > 0 && s.states, has_after = c + 1 < s.chunks && s.later;
  const bool flows = s.dlog_a.data, factors = s.decays || s.weighs, normalised = s.row.from.data;

  // The warp's tile of pairs, placed so that each scheduler has as many below the diagonal; its tile of dq or
  // of dk; its tile of a slice of dv, whose causal work is evened out likewise.
  const int pair_tile = warp / (warps / 4), pair_row = pair_tile * 16;
  const int pair_column = warp % 2 * pair_columns;
  const bool pairs = pair_column <= pair_row;
  const int pair_rows[2] = {pair_row + lane.g, pair_row + lane.g + 8};
  const bool of_keys = warp >= warps / 2;
  const int row0 = warp % 4 * 16;
  const int rows[2] = {row0 + lane.g, row0 + lane.g + 8};
  const int v_row = 16 * (warp / 4 % 2 ? 3 - warp % 4 : warp % 4), v_column = warp / 4 * 8 * vn;
  const int v_rows[2] = {v_row + lane.g, v_row + lane.g + 8};
  float A[pn][4] = {}, D[pn][4] = {}, G[pn][4] = {}, W[pn][4] = {}, d[nt][4] = {}, sum[nt][4] = {};

  const auto item_of = [&](int each) { return (int64_t{b} * s.H + group * per_group + each) * s.chunks + c; };
  // A thread's part of a slice: every `down` rows of it 16 bytes, at addresses that only move on.
  constexpr int down = threads * 4 / slice, state_copies = Np / down;
  const int own_row = tid * 4 / slice, own_column = tid * 4 % slice,
            own = swizzled(own_row, own_column, slice);
  const bool whole = n == ssd_chunk && s.P % slice == 0;
  const float *dy_at = s.dy.row(b, group * per_group, t0 + own_row) + own_column,
              *v_at = s.v.row(b, group * per_group, t0 + own_row) + own_column, *before_at = nullptr,
              *after_at = nullptr;
  if (has_before) before_at = s.states + item_of(0) * s.elements + own_row * s.Pp + own_column;
  if (has_after) after_at = s.later + item_of(0) * Np * s.Pp + own_row * s.Pp + own_column;
  const auto stage_part = [&]<int copies>(float* to, const float*& from, int64_t stride) {
    const float* x = from;
#pragma unroll
    for (int i = 0; i < copies; ++i, x += stride) copy_async_16(to + i * down * slice, x);
    from += slice;
  };
  int next = 0, next_p = 0, next_stage = 0;  // head, column and place of the slice to be asked for next
  const auto issue = [&] {
    if (next < per_group) {
      float* to = q + Plan::stages_at + next_stage * Plan::stage;
      if (whole && s.aligned) {
        stage_part.template operator()<ssd_chunk / down>(to + own, dy_at, down * s.dy.time);
        stage_part.template operator()<ssd_chunk / down>(to + own + Plan::v_at, v_at, down * s.v.time);
      } else {
        const int h = group * per_group + next, width = s.P - next_p < slice ? s.P - next_p : slice;
        stage_rows<threads, slice, slice>(to, s.dy.row(b, h, t0) + next_p, s.dy.time, n, width, s.aligned);
        stage_rows<threads, slice, slice>(to + Plan::v_at, s.v.row(b, h, t0) + next_p, s.v.time, n, width,
                                          s.aligned);
      }
      if (has_before)
        stage_part.template operator()<state_copies>(to + own + Plan::before_at, before_at, down * s.Pp);
      if (has_after)
        stage_part.template operator()<state_copies>(to + own + Plan::after_at, after_at, down * s.Pp);
      if (grouped && next_p == 0 && factors && next + 1 < per_group)
        f.steps[(next + 1) % Plan::ring].issue(s, item_of(next + 1), tid);
      next_stage = next_stage + 1 < stages ? next_stage + 1 : 0;
      next_p += slice;
      if (next_p >= s.P) {
        dy_at += s.dy.head - next_p, v_at += s.v.head - next_p;
        if (has_before) before_at += s.chunks * s.elements - next_p;
        if (has_after) after_at += int64_t{s.chunks} * Np * s.Pp - next_p;
        ++next, next_p = 0;
      }
    }
    copy_commit();
  };
  const auto put_pairs = [&](int each) {  // M = D ∘ A r
    const HeadSteps& steps = f.steps[each % Plan::ring];
    float* to = m + each % Plan::heads * Plan::pairs;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float factor = f.row[pair_rows[r]];
#pragma unroll
      for (int j = 0; j < pn; ++j) {
        const int column = pair_column + 8 * j + 2 * lane.t;
        float value[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const bool kept = column + e <= pair_rows[r];
          const float decay = factors ? steps.between(pair_rows[r], column + e) : 1.0f;
          D[j][2 * r + e] = kept ? decay : 0.0f;
          value[e] = kept ? decay * A[j][2 * r + e] * factor : 0.0f;
        }
        *reinterpret_cast<float2*>(to + pair_rows[r] * m_ld + (column ^ lane.of_g)) = {value[0], value[1]};
      }
    }
  };
  const auto finish_pairs = [&](HeadSums& sums, const HeadSteps& steps) {  // W += D w ∘ G
    if (s.dskip) {
      double diagonal = 0;
#pragma unroll
      for (int j = 0; j < pn; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (pair_column + 8 * j + 2 * lane.t + i % 2 == pair_rows[i / 2])
            diagonal += static_cast<double>(G[j][i]);
      diagonal = sum_over_rows(sum_over_columns(diagonal));
      if (lane.g + lane.t == 0 && pair_row < pair_column + pair_columns)
        sums.skipped[pair_row / 16] = diagonal;
    }
    double ends[2] = {};
#pragma unroll
    for (int j = 0; j < pn; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int column = pair_column + 8 * j + 2 * lane.t + e;
        const float weight = factors ? steps.weight[column] : 1.0f;
        double starts = 0;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int i = 2 * r + e;
          const float g = column <= pair_rows[r] ? D[j][i] * G[j][i] : 0.0f;
          W[j][i] += g * weight, G[j][i] = 0;
          if (!factors) continue;
          const float product = g * A[j][i];
          const auto off = static_cast<double>(column < pair_rows[r] ? product : 0.0f);
          ends[r] += static_cast<double>(weight) * off, starts += off;
          if (column == pair_rows[r]) sums.diagonal[column] = product;
        }
        if (!factors) continue;
        starts = sum_over_rows(starts);
        if (lane.g == 0) sums.starts[pair_row / 16][column] = starts;
      }
    if (!factors) return;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      ends[r] = sum_over_columns(ends[r]);
      if (lane.t == 0) sums.ends[pair_column / pair_columns][pair_rows[r]] = ends[r];
    }
  };
  const auto add_up = [&](int each) {  // what a head has left in its sums
    const HeadSums& sums = f.sums[each % Plan::heads];
    const HeadSteps& steps = f.steps[each % Plan::ring];
    const int h = group * per_group + each;
    if (flows && warp == 1) assemble_flow(sums, steps, s, pair_columns, warps, b, h, c, n);
    if (s.dw.data && tid < n) {
      double starts = 0;
      for (int tile = tid / 16; tile < 4; ++tile) starts += sums.starts[tile][tid];
      s.dw.at(b, t0 + tid, h) = static_cast<float>(starts) + sums.diagonal[tid] + sums.to_state[tid];
    }
    if (s.dskip && tid == 0)
      s.dskip[item_of(each)] = sums.skipped[0] + sums.skipped[1] + sums.skipped[2] + sums.skipped[3];
  };

  stage_rows<threads, Np, ld>(q, s.q.row(b, group, t0), s.q.time, n, s.N, s.aligned);
  stage_rows<threads, Np, ld>(k, s.k.row(b, group, t0), s.k.time, n, s.N, s.aligned);
  if (factors)
    f.steps[0].issue(s, item_of(0), tid);
  else
    for (int i = 0; i < Plan::ring; ++i) f.steps[i].put_ones(tid);
  copy_commit();
  for (int i = 0; i < stages; ++i) issue();
  if (tid < ssd_chunk) f.row[tid] = tid < n ? s.row.at(b, t0 + tid, group) : 0.0f;
  copy_wait<stages>();
  __syncthreads();
  if (pairs) {
    multiply_tile<F, pn, Np>(
        A, [&](auto& a, int kb, int i) { F::template a_rows<ld>(a, q + pair_row * ld + kb, i, 0, lane); },
        [&](auto& x, int j, int kb, int i) {
          F::template b_rows<ld>(x, k + (pair_column + 8 * j) * ld + kb, i, lane);
        });
    put_pairs(0);
  }

  double passed = 0;
  int each = 0, p0 = 0, stage = 0;
#pragma unroll 1
  for (;;) {
    const bool first = each == 0 && p0 == 0;
    if constexpr (stages == 1) {
      if (!first) {
        __syncthreads();
        issue();
      }
      copy_wait<0>();
      __syncthreads();
    } else {
      if (first)
        copy_wait<stages - 1>();
      else
        copy_wait<stages - 2>();
      __syncthreads();
      if (!first) issue();
    }
    const int h = group * per_group + each;
    const HeadSteps& steps = f.steps[each % Plan::ring];
    HeadSums& sums = f.sums[each % Plan::heads];
    const float *dy = q + Plan::stages_at + stage * Plan::stage, *v = dy + Plan::v_at,
                *before = dy + Plan::before_at, *after = dy + Plan::after_at;
    stage = stage + 1 < stages ? stage + 1 : 0;
    if (grouped && p0 == 0 && each > 0) add_up(each - 1);

    if (pairs)
      multiply_tile<F, pn, slice>(
          G,
          [&](auto& a, int kb, int i) {
            F::template a_rows<slice>(a, dy + pair_row * slice + kb, i, 0, lane);
          },
          [&](auto& x, int j, int kb, int i) {
            F::template b_rows<slice>(x, v + (pair_column + 8 * j) * slice + kb, i, lane);
          });
    if (of_keys ? has_after : has_before) {  // dq: dy Sᵀ; dk: v Rᵀ
      const float *x = of_keys ? v : dy, *state = of_keys ? after : before;
      multiply_tile<F, nt, slice>(
          d, [&](auto& a, int kb, int i) { F::template a_rows<slice>(a, x + row0 * slice + kb, i, 0, lane); },
          [&](auto& y, int j, int kb, int i) {
            F::template b_rows<slice>(y, state + 8 * j * slice + kb, i, lane);
          });
    }
    if (flows && has_before && has_after && !pairs)  // elements' order is the same in both, whichever it is
#pragma unroll 4
      for (int e = (warp / 2 * 32 + tid % 32) * 4; e < Np * slice; e += 256) {
        const float4 x = *reinterpret_cast<const float4*>(before + e),
                     y = *reinterpret_cast<const float4*>(after + e);
        passed += static_cast<double>(x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w);
      }
    if (s.dv.data && v_row < n) {
      float u[vn][4] = {};
      if (has_after) {
        multiply_tile<F, vn, Np>(
            u, [&](auto& a, int kb, int i) { F::template a_rows<ld>(a, k + v_row * ld + kb, i, 0, lane); },
            [&](auto& x, int j, int kb, int i) {
              F::template b_columns<slice>(x, after + (kb + 8 * i) * slice + v_column / 32 * 32, j,
                                           v_column % 32, lane);
            });
        if (s.decays)
#pragma unroll
          for (int r = 0; r < 2; ++r)
#pragma unroll
            for (int j = 0; j < vn; ++j)
              u[j][2 * r] *= steps.to_end[v_rows[r]], u[j][2 * r + 1] *= steps.to_end[v_rows[r]];
      }
      const float* pairs_of = m + each % Plan::heads * Plan::pairs;
      multiply_range_unrolled<F, vn>(
          u, v_row, ssd_chunk,
          [&](auto& a, int kb, int i) {
            F::template a_columns<m_ld, false>(a, pairs_of + (kb + 8 * i) * m_ld, v_row, nullptr, lane);
          },
          [&](auto& x, int j, int kb, int i) {
            F::template b_columns<slice>(x, dy + (kb + 8 * i) * slice + v_column / 32 * 32, j, v_column % 32,
                                         lane);
          });
      const float skip = s.skip.data ? s.skip.at(0, 0, h) : 0.0f;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float weight = steps.weight[v_rows[r]];
#pragma unroll
        for (int j = 0; j < vn; ++j) {
          const float2 own =
              s.skip.data ? two_at(dy + v_rows[r] * slice + ((v_column + 8 * j + 2 * lane.t) ^ lane.of_g))
                          : float2{0, 0};
          u[j][2 * r] = weight * u[j][2 * r] + skip * own.x;
          u[j][2 * r + 1] = weight * u[j][2 * r + 1] + skip * own.y;
        }
      }
      if (whole && s.even) {
        float* x = s.dv.row(b, h, t0 + v_rows[0]) + p0 + v_column + 2 * lane.t;
#pragma unroll
        for (int r = 0; r < 2; ++r, x += 8 * s.dv.time)
#pragma unroll
          for (int j = 0; j < vn; ++j) *reinterpret_cast<float2*>(x + 8 * j) = {u[j][2 * r], u[j][2 * r + 1]};
      } else {
        store_tile<vn>(u, s.dv, b, h, t0, n, v_row, p0 + v_column, s.P, s.even, lane);
      }
    }

    p0 += slice;
    if (p0 < s.P) continue;
    if (pairs) {
      finish_pairs(sums, steps);
      if (each + 1 < per_group) put_pairs(each + 1);
    }
    if (flows) {
      passed = sum_over_rows(sum_over_columns(passed));
      if (lane.g + lane.t == 0) sums.passed[warp] = passed;
      passed = 0;
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float factor = of_keys ? steps.to_end[rows[r]] : steps.fade[rows[r]],
                  weight = of_keys ? steps.weight[rows[r]] : 1.0f;
      float dot = 0;
#pragma unroll
      for (int j = 0; j < nt; ++j) {
        d[j][2 * r] *= factor, d[j][2 * r + 1] *= factor;
        if (factors || normalised) {
          const float2 own = two_at((of_keys ? k : q) + rows[r] * ld + ((8 * j + 2 * lane.t) ^ lane.of_g));
          dot += d[j][2 * r] * own.x + d[j][2 * r + 1] * own.y;
        }
        sum[j][2 * r] += weight * d[j][2 * r], sum[j][2 * r + 1] += weight * d[j][2 * r + 1];
        d[j][2 * r] = d[j][2 * r + 1] = 0;
      }
      if (factors || normalised) {
        dot = sum_over_columns(dot);
        if (lane.t == 0) (of_keys ? sums.to_state : sums.from_state)[rows[r]] = dot;
      }
    }
    p0 = 0, ++each;
    if (!grouped || each == per_group) break;
  }

  if (normalised) {  // δ_i = Σ_j W_ij A_ij + q_i·(S's part of dq_i)
    if (pairs)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float dot = 0;
#pragma unroll
        for (int j = 0; j < pn; ++j)
#pragma unroll
          for (int e = 2 * r; e < 2 * r + 2; ++e) dot += W[j][e] * A[j][e];
        dot = sum_over_columns(dot);
        if (lane.t == 0) f.delta[pair_column / pair_columns][pair_rows[r]] = dot;
      }
    __syncthreads();
    if (tid < ssd_chunk) {
      float delta = f.sums[0].from_state[tid];
      for (int p = 0; p * pair_columns <= tid / 16 * 16; ++p) delta += f.delta[p][tid];
      if (s.delta && tid < n) s.delta[(int64_t{b} * s.steps + t0 + tid) * s.H + group] = delta;
      f.deta[tid] = s.linear ? -f.row[tid] * f.row[tid] * delta : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 2; ++r) {  // W becomes r W + dη
      const float factor = f.row[pair_rows[r]], deta = f.deta[pair_rows[r]];
#pragma unroll
      for (int j = 0; j < pn; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const bool kept = pair_column + 8 * j + 2 * lane.t + e <= pair_rows[r];
          W[j][2 * r + e] = kept ? factor * W[j][2 * r + e] + deta : 0.0f;
        }
    }
    if (!of_keys) {
      const float* z = s.states + item_of(0) * s.elements + Np * s.Pp;
      const bool has_sums = s.linear && has_before;
#pragma unroll
      for (int j = 0; j < nt; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float sum_of = has_sums ? z[8 * j + 2 * lane.t + e] : 0.0f;
#pragma unroll
          for (int r = 0; r < 2; ++r)
            sum[j][2 * r + e] = f.row[rows[r]] * sum[j][2 * r + e] + f.deta[rows[r]] * sum_of;
        }
    }
    if (s.linear) {  // Σ_i dη_i q_i, Np / 8 columns a warp
      constexpr int own_columns = Np / warps, row_parts = 32 / own_columns;
      const int column = warp * own_columns + tid % own_columns;
      float tail = 0;
#pragma unroll 4
      for (int i = tid % 32 / own_columns; i < ssd_chunk; i += row_parts)
        tail += f.deta[i] * q[swizzled(i, column, ld)];
#pragma unroll
      for (int e = own_columns; e < 32; e *= 2) tail += __shfl_xor_sync(0xFFFFFFFFu, tail, e);
      if (tid % 32 < own_columns && column < s.N) s.tails[item_of(0) * s.N + column] = tail;
    }
  }
  float* w = grouped ? m + per_group % 2 * Plan::pairs
                     : q + Plan::stages_at + (stage + stages - 2) % stages * Plan::stage;
  if (pairs)
#pragma unroll
    for (int j = 0; j < pn; ++j)
#pragma unroll
      for (int r = 0; r < 2; ++r)
        *reinterpret_cast<float2*>(w + pair_rows[r] * m_ld +
                                   ((pair_column + 8 * j + 2 * lane.t) ^ lane.of_g)) = {W[j][2 * r],
                                                                                        W[j][2 * r + 1]};
  __syncthreads();
  add_up(per_group - 1);

  if (of_keys)  // Wᵀ q
    multiply_range_unrolled<F, nt>(
        sum, row0, ssd_chunk,
        [&](auto& a, int kb, int i) {
          F::template a_columns<m_ld, false>(a, w + (kb + 8 * i) * m_ld, row0, nullptr, lane);
        },
        [&](auto& x, int j, int kb, int i) {
          F::template b_columns<ld>(x, q + (kb + 8 * i) * ld, j, 0, lane);
        });
  else  // W k
    multiply_range_unrolled<F, nt>(
        sum, 0, row0 + 16,
        [&](auto& a, int kb, int i) {
          F::template a_rows<m_ld>(a, w + row0 * m_ld + kb / 32 * 32, i, kb % 32, lane);
        },
        [&](auto& x, int j, int kb, int i) {
          F::template b_columns<ld>(x, k + (kb + 8 * i) * ld, j, 0, lane);
        });
  const Heads<float>& to = of_keys ? s.dk : s.dq;
  if (s.of_elu) times_elu_slope<nt, ld>(sum, of_keys ? k : q, row0, 0, lane);
  if (to.data) store_tile<nt>(sum, to, b, group, t0, n, row0, 0, s.N, s.even, lane);
}

}  // namespace

template <Precision precision>
void launch_gradients(const Context& ctx, const SsdPass& s) {
  if (s.Np == 16 || precision == Precision::fp32) return launch_whole_gradients<precision>(ctx, s);
  if (precision == Precision::tf32 && launch_gradients_wgmma(ctx, s)) return;
  if constexpr (precision != Precision::fp32) {
    const auto grid = static_cast<unsigned>(s.B * s.G * s.chunks);
    const auto start = [&]<int Np, int slice, int stages, bool grouped>() {
      using Plan = GradientPlan<Np, slice, stages, grouped>;
      launch(ctx, ssd_gradients_kernel<precision, Np, slice, stages, grouped>, grid, Plan::threads,
             Plan::bytes, s);
    };
    const auto fits = [&]<int Np, int slice, int stages, bool grouped>() {
      return GradientPlan<Np, slice, stages, grouped>::bytes <= s.shared;
    };
    static_assert(GradientPlan<64, 32, 2, true>::bytes <= ssd_least_shared(64) &&
                  GradientPlan<128, 32, 1, true>::bytes <= ssd_least_shared(128));
    if (s.Np == 64 && s.P > 32 && fits.template operator()<64, 64, 2, true>())
      start.template operator()<64, 64, 2, true>();
    else if (s.Np == 64)
      start.template operator()<64, 32, 2, true>();
    else if (s.G == s.H && fits.template operator()<128, 32, 2, false>())
      start.template operator()<128, 32, 2, false>();
    else if (fits.template operator()<128, 32, 2, true>())
      start.template operator()<128, 32, 2, true>();
    else
      start.template operator()<128, 32, 1, true>();
  }
}

}  // namespace eigentrace::kernels
#endif
