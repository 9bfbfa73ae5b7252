#pragma once
// As ssd_gradients.cuh with P unsliced, for what is faster so: N ≤ 16, where the products with states are
// small and two blocks share a multiprocessor, and float32 without tensor cores, which wants many warps. Half
// of the warps hold dq in registers, the other half dk; all of them make the pairs' matrices and dv. Between
// barriers, a head:
//   q, k, v, dy and the factors are there
//   A, G; E's sums; S's part of dq and R's part of dk, with their rows' products with q and k
//   the matrices of pairs take v's place (v is read)
//   dv; after the last head dq and dk
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/kernels/ssd_tiles.cuh"

namespace eigentrace::kernels {
namespace {

struct WholeShared {
  double ends[4][ssd_chunk],
      starts[4][ssd_chunk];       // E's sums over rows of column parts, columns of row tiles
  double passed[16], skipped[4];  // ⟨S, R⟩ a warp; Σ G_ii a row tile
  ChunkSteps steps;
  float columns[4][ssd_chunk];                             // Σ_i D_ij A_ij G_ij
  float from_state[2][ssd_chunk], to_state[2][ssd_chunk];  // parts of columns of dq, dk
  float deta[ssd_chunk];
};

/// dlog_a_t = Σ_{i≥t} (ends − starts + from state) + Σ_{j<t} to state + passed, by one warp.
__device__ __forceinline__ void assemble_whole_flow(const WholeShared& f, const SsdPass& s, int parts,
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
  double over = 0;
  for (int w = 0; w < warps; ++w) over += f.passed[w];
  store_flow(s, net, passed, over, b, h, c, n);
}

/// Where a block's shared memory goes: q, k, S, R, v, one or two dy, and the pairs' two matrices, which take
/// S's place, or v's, where they fit and nothing else is to come there.
template <int Np, int Pp, bool grouped, bool staged>
struct WholePlan {
  static constexpr int warps = Np == 16 ? 8 : 16, threads = 32 * warps, ld = Np < 32 ? 32 : Np;
  static constexpr int rows = ssd_chunk * Pp, pairs = 2 * ssd_chunk * ssd_chunk, state = staged ? Np * Pp : 0;
  static constexpr bool ahead = grouped && staged, in_state = state >= pairs, in_v = !in_state && !ahead;
  static constexpr int v_room = in_v && rows < pairs ? pairs : rows;
  static constexpr int k_at = ssd_chunk * ld, before_at = 2 * k_at, after_at = before_at + state,
                       v_at = after_at + state, dy_at = v_at + v_room,
                       pairs_at = in_state ? before_at
                                  : in_v   ? v_at
                                           : dy_at + (ahead ? 2 : 1) * rows,
                       floats = dy_at + (ahead ? 2 : 1) * rows + (in_state || in_v ? 0 : pairs);
  static constexpr size_t bytes = sizeof(WholeShared) + sizeof(float) * floats;
};

/// A warp holds 16 rows × 8 nt columns of dq or of dk; grouped: heads share q and k. Blocks [chunks B G]:
/// early chunks first, since ssd_states_kernel has left them in the cache.
template <Precision precision, int Np, int Pp, bool grouped, bool staged>
__global__ void __launch_bounds__(Np == 16 ? 256 : 512, Np == 16 ? 2 : 1)
    ssd_whole_gradients_kernel(const __grid_constant__ SsdPass s) {
  using F = Fragments<precision>;
  using Plan = WholePlan<Np, Pp, grouped, staged>;
  constexpr int warps = Plan::warps, threads = Plan::threads, nt = Np == 16 ? 2 : Np / 16, ld = Plan::ld,
                v_ld = Pp;
  constexpr int pair_columns = 256 / warps, pn = pair_columns / 8, parts = warps / 8, m_ld = ssd_chunk;
  auto& f = *dynamic_shared<WholeShared>();
  float *q = reinterpret_cast<float*>(&f + 1), *k = q + Plan::k_at, *v = q + Plan::v_at,
        *m = q + Plan::pairs_at, *w = m + ssd_chunk * m_ld;
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

  const auto item_of = [&](int each) { return (int64_t{b} * s.H + group * per_group + each) * s.chunks + c; };
  const auto dy_of = [&](int each) { return q + Plan::dy_at + (Plan::ahead ? each % 2 * Plan::rows : 0); };
  const auto issue_rows = [&](int each) {
    const int h = group * per_group + each;
    stage_rows<threads, Pp, v_ld>(dy_of(each), s.dy.row(b, h, t0), s.dy.time, n, s.P, s.aligned);
    stage_rows<threads, Pp, v_ld>(v, s.v.row(b, h, t0), s.v.time, n, s.P, s.aligned);
    copy_commit();
  };
  const auto issue_states = [&](int each) {
    const float *before = s.states + item_of(each) * s.elements, *after = s.later + item_of(each) * Np * Pp;
    if constexpr (staged) {
      if (has_before) stage_state<threads, Np, Pp>(q + Plan::before_at, before, Pp);
      if (has_after) stage_state<threads, Np, Pp>(q + Plan::after_at, after, Pp);
      copy_commit();
    } else {
      if (has_before) prefetch(before, int64_t{4} * Np * Pp);
      if (has_after) prefetch(after, int64_t{4} * Np * Pp);
    }
  };
  stage_rows<threads, Np, ld>(q, s.q.row(b, group, t0), s.q.time, n, s.N, s.aligned);
  stage_rows<threads, Np, ld>(k, s.k.row(b, group, t0), s.k.time, n, s.N, s.aligned);
  issue_rows(0);
  issue_states(0);
  if (tid < ssd_chunk) f.steps.load(s, b, group * per_group, c, tid);
  for (int each = 0; each < per_group; ++each) {
    const int h = group * per_group + each;
    const bool last = each + 1 == per_group;
    const int64_t item = item_of(each);
    const float *before = staged ? q + Plan::before_at : s.states + item * s.elements,
                *after = staged ? q + Plan::after_at : s.later + item * Np * Pp, *dy = dy_of(each);
    if constexpr (staged)
      copy_wait<1>();
    else
      copy_wait<0>();
    if constexpr (Np == 16)
      if (s.mask.drops)
        mask_rows<threads, Pp, v_ld>(dy_of(each), s.mask, b * int64_t{s.steps} + t0, h, 0, s.aligned);
    __syncthreads();

    float M[pn][4] = {};
    if (pairs) {
      if (each == 0)
        multiply_tile<F, pn, Np>(
            A, [&](auto& a, int kb, int i) { F::template a_rows<ld>(a, q + pair_row * ld + kb, i, 0, lane); },
            [&](auto& x, int j, int kb, int i) {
              F::template b_rows<ld>(x, k + (pair_column + 8 * j) * ld + kb, i, lane);
            });
      multiply_tile<F, pn, Pp>(
          M,
          [&](auto& a, int kb, int i) { F::template a_rows<v_ld>(a, dy + pair_row * v_ld + kb, i, 0, lane); },
          [&](auto& x, int j, int kb, int i) {
            F::template b_rows<v_ld>(x, v + (pair_column + 8 * j) * v_ld + kb, i, lane);
          });
      if (s.dskip && pair_row < pair_column + pair_columns) {
        double diagonal = 0;
#pragma unroll
        for (int j = 0; j < pn; ++j)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            if (pair_column + 8 * j + 2 * lane.t + i % 2 == pair_rows[i / 2])
              diagonal += static_cast<double>(M[j][i]);
        diagonal = sum_over_rows(sum_over_columns(diagonal));
        if (lane.g + lane.t == 0) f.skipped[pair_row / 16] = diagonal;
      }
      const float row_factor[2] = {f.steps.row[pair_rows[0]], f.steps.row[pair_rows[1]]};
      const auto mix = [&]<bool full>() {  // G becomes D A r; W grows by D w G
        double ends[2] = {};
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
              const bool kept = column <= pair_rows[r];
              float a = A[j][i], g = M[j][i];
              if constexpr (full) {
                const float decay = f.steps.between(pair_rows[r], column);
                a *= decay;
                direct += kept ? a * g : 0.0f;
                g *= decay * f.steps.weight[column];
                const auto product = static_cast<double>(column < pair_rows[r] ? g * A[j][i] : 0.0f);
                ends[r] += product, starts += product;
              }
              W[j][i] += kept ? g : 0.0f;
              M[j][i] = kept ? a * row_factor[r] : 0.0f;
            }
            if constexpr (full) {
              starts = sum_over_rows(starts), direct = sum_over_rows(direct);
              if (lane.g == 0)
                f.starts[pair_row / 16][column] = starts, f.columns[pair_row / 16][column] = direct;
            }
          }
        if constexpr (full) {
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            ends[r] = sum_over_columns(ends[r]);
            if (lane.t == 0) f.ends[pair_column / pair_columns][pair_rows[r]] = ends[r];
          }
        }
      };
      if (factors)
        mix.template operator()<true>();
      else
        mix.template operator()<false>();
    }
    if constexpr (staged) {
      copy_wait<0>();
      __syncthreads();
    }
    if (flows) {
      double passed = 0;
      if (has_before && has_after)  // whatever the order of their elements, it is the same in both
        for (int e = 4 * tid; e < Np * Pp; e += 4 * threads) {
          const float4 x = *reinterpret_cast<const float4*>(before + e),
                       y = *reinterpret_cast<const float4*>(after + e);
          passed += static_cast<double>(x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w);
        }
      passed = s.decays ? static_cast<double>(s.f.decay[item]) * passed : passed;
      passed = sum_over_rows(sum_over_columns(passed));
      if (lane.g + lane.t == 0) f.passed[warp] = passed;
    }
    {  // dq: dy Sᵀ; dk: v Rᵀ
      float d[nt][4] = {};
      const float *x = of_keys ? v : dy, *state = of_keys ? after : before;
      const bool there = of_keys ? has_after : has_before;
      if (there) {
        multiply_tile<F, nt, Pp>(
            d, [&](auto& a, int kb, int i) { F::template a_rows<v_ld>(a, x + row0 * v_ld + kb, i, 0, lane); },
            [&](auto& y, int j, int kb, int i) {
              if constexpr (staged)
                F::template b_rows<Pp>(y, state + (column0 + 8 * j) * Pp + kb, i, lane);
              else
                F::template b_rows_far<Pp>(y, state + (column0 + 8 * j) * Pp + kb, i, lane);
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
    ChunkSteps::Own next;
    if (!last) {
      if constexpr (Plan::ahead) issue_rows(each + 1);
      if (tid < ssd_chunk) next = ChunkSteps::read(s, b, h + 1, c, tid);
    }
    __syncthreads();

    if (flows && warp == warps - 1) assemble_whole_flow(f, s, parts, pair_columns, warps, b, h, c, n);
    if (s.dw.data && tid < n) {
      float sum_of = 0;
      for (int tile = tid / 16; tile < 4; ++tile) sum_of += f.columns[tile][tid];
      for (int p = 0; p < parts; ++p) sum_of += f.to_state[p][tid];
      s.dw.at(b, t0 + tid, h) = sum_of;
    }
    if (s.dskip && tid == 0) s.dskip[item] = f.skipped[0] + f.skipped[1] + f.skipped[2] + f.skipped[3];
    if (s.dv.data) {
      const float skip = s.skip.data ? s.skip.at(0, 0, h) : 0.0f;
      for (int tile = warp; tile < Pp / 8; tile += warps) {
        const int row_tile = tile / warps % 2 ? 3 - tile % 4 : tile % 4, v_row = 16 * row_tile,
                  v_column = tile / 4 * 32, v_rows[2] = {v_row + lane.g, v_row + lane.g + 8};
        if (v_row >= n) continue;
        float d[4][4] = {};
        if (has_after) {
          multiply_tile<F, 4, Np>(
              d, [&](auto& a, int kb, int i) { F::template a_rows<ld>(a, k + v_row * ld + kb, i, 0, lane); },
              [&](auto& x, int j, int kb, int i) {
                if constexpr (staged)
                  F::template b_columns<Pp>(x, after + (kb + 8 * i) * Pp + v_column, j, 0, lane);
                else
                  F::template b_columns_far<Pp>(x, after + (kb + 8 * i) * Pp + v_column, j, lane);
              });
          if (s.decays)
#pragma unroll
            for (int r = 0; r < 2; ++r)
#pragma unroll
              for (int j = 0; j < 4; ++j)
                d[j][2 * r] *= f.steps.to_end[v_rows[r]], d[j][2 * r + 1] *= f.steps.to_end[v_rows[r]];
        }
        multiply_range<F, 4>(
            d, v_row, ssd_chunk,
            [&](auto& a, int kb, int i) {
              F::template a_columns<m_ld, false>(a, m + (kb + 8 * i) * m_ld, v_row, nullptr, lane);
            },
            [&](auto& x, int j, int kb, int i) {
              F::template b_columns<v_ld>(x, dy + (kb + 8 * i) * v_ld + v_column, j, 0, lane);
            });
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
    if (last) break;
    __syncthreads();
    if (tid < ssd_chunk) f.steps.put(next, tid);
    if constexpr (!Plan::ahead) issue_rows(each + 1);
    issue_states(each + 1);
  }

  // dq: W k, dk: Wᵀ (r q)
  if (of_keys)
    multiply_range<F, nt>(
        sum, row0, ssd_chunk,
        [&](auto& a, int kb, int i) {
          F::template a_columns<m_ld, true>(a, w + (kb + 8 * i) * m_ld, row0, f.steps.row + kb + 8 * i, lane);
        },
        [&](auto& x, int j, int kb, int i) {
          F::template b_columns<ld>(x, q + (kb + 8 * i) * ld + column0, j, 0, lane);
        });
  else
    multiply_range<F, nt>(
        sum, 0, row0 + 16,
        [&](auto& a, int kb, int i) {
          F::template a_rows<m_ld>(a, w + row0 * m_ld + kb / 32 * 32, i, kb % 32, lane);
        },
        [&](auto& x, int j, int kb, int i) {
          F::template b_columns<ld>(x, k + (kb + 8 * i) * ld + column0, j, 0, lane);
        });
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
      const float* z = s.states + ((int64_t{b} * s.H + h) * s.chunks + c) * s.elements + Np * Pp;
      float d[nt][4] = {};
      multiply_range<F, nt>(
          d, of_keys ? row0 : 0, of_keys ? ssd_chunk : row0 + 16,
          [&](auto& a, int kb, int i) {
            F::a_of(a, kb + 8 * i, lane, [&](int r, int at) {
              if (of_keys) return at >= rows[r] ? f.deta[at] : 0.0f;
              return at <= rows[r] ? 1.0f : 0.0f;
            });
          },
          [&](auto& x, int j, int kb, int i) {
            F::template b_columns<ld>(x, (of_keys ? q : k) + (kb + 8 * i) * ld + column0, j, 0, lane);
          });
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
  if (s.of_elu) times_elu_slope<nt, ld>(sum, of_keys ? k : q, row0, column0, lane);
  if (to.data) store_tile<nt>(sum, to, b, group, t0, n, row0, column0, s.N, s.even, lane);
}

}  // namespace

/// N ≤ 16, or fp32.
template <Precision precision>
void launch_whole_gradients(const Context& ctx, const SsdPass& s) {
  const auto grid = static_cast<unsigned>(s.B * s.G * s.chunks);
  const auto start = [&]<int Np, int Pp, bool grouped, bool staged>() {
    using Plan = WholePlan<Np, Pp, grouped, staged>;
    launch(ctx, ssd_whole_gradients_kernel<precision, Np, Pp, grouped, staged>, grid, Plan::threads,
           Plan::bytes, s);
  };
  if (s.Np == 16 && s.Pp == 32) return start.template operator()<16, 32, false, true>();
  if (s.Np == 16) return start.template operator()<16, 128, false, true>();
  if constexpr (precision == Precision::fp32) {
    if (s.Np == 64 && s.Pp == 64)
      start.template operator()<64, 64, false, false>();
    else if (s.Np == 64 && s.Pp == 32)
      start.template operator()<64, 32, true, true>();
    else if (s.Np == 64 && WholePlan<64, 128, true, true>::bytes <= s.shared)
      start.template operator()<64, 128, true, true>();
    else if (s.Np == 64)
      start.template operator()<64, 128, true, false>();
    else if (s.G == s.H)
      start.template operator()<128, 128, false, false>();
    else
      start.template operator()<128, 128, true, false>();
  }
}

}  // namespace eigentrace::kernels
#endif
