#pragma once
// The kernel that ssd_walk.h describes.
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/kernels/ssd_fragments.cuh"
#include "tensor/kernels/ssd_walk.h"

namespace eigentrace::kernels {
namespace {

/// Copies rows of one chunk to shared memory, zeros after the last row and column.
__device__ __forceinline__ void stage_rows(float* to, int ld, const float* from, int64_t stride, int n,
                                           int width, int room, bool aligned) {
  // One division, then rows in steps: the loop itself only adds.
  const int width_of = aligned ? 4 : 1, across = room / width_of, step = walk_threads / across;
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

/// Sums over the four lanes of a row, in lane t = 0.
__device__ __forceinline__ double sum_over_columns(double x) {
  x += __shfl_xor_sync(0xFFFFFFFFu, x, 1);
  return x + __shfl_xor_sync(0xFFFFFFFFu, x, 2);
}
__device__ __forceinline__ double sum_over_rows(double x) {
  x += __shfl_xor_sync(0xFFFFFFFFu, x, 4);
  x += __shfl_xor_sync(0xFFFFFFFFu, x, 8);
  return x + __shfl_xor_sync(0xFFFFFFFFu, x, 16);
}

/// Factors of a chunk, by the first warp.
__device__ __forceinline__ float load_walk_factors(WalkShared& f, const Walk& s, const WalkRole& role, int b,
                                                   int h, int64_t t0, int n) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float decay = 1;
  double own[2] = {};
  if (s.log_a.data) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int i = 2 * lane + e;
      if (i >= n) continue;
      const double given = static_cast<double>(s.log_a.at(b, t0 + i, h));
      own[e] = given > -800 || given != given ? given : -800;
    }
  }
  double before = own[0] + own[1];
#pragma unroll
  for (unsigned d = 1; d < 32; d *= 2) {
    const double other = __shfl_up_sync(0xFFFFFFFFu, before, d);
    if (lane >= static_cast<int>(d)) before += other;
  }
  const double total = __shfl_sync(0xFFFFFFFFu, before, 31);
  before = __shfl_up_sync(0xFFFFFFFFu, before, 1u);
  if (lane == 0) before = 0;
  if (s.log_a.data) decay = expf(static_cast<float>(total));
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int i = 2 * lane + e;
    before += own[e];
    const float b_i = i < n ? role.source.at(b, t0 + i, h) : 0.0f;
    f.sum[i] = before;
    f.source[i] = b_i;
    f.carry[i] = s.log_a.data ? b_i * expf(static_cast<float>(role.reverse ? before : total - before)) : b_i;
  }
  return decay;
}

/// S ← decay S + Yᵀ (carry Z) in tiles of 16 mt × 8 nt a warp.
template <Precision precision, int mt, int nt>
__device__ __forceinline__ void update_state(float* state, const float* y, int y_ld, const float* z, int z_ld,
                                             const float* carry, float decay, bool add, int inner, int slice,
                                             int n, const Lane& lane) {
  using F = Fragments<precision>;
  const int warp = static_cast<int>(threadIdx.x) / 32, across = slice / (8 * nt);
  const int tiles = (inner + 16 * mt - 1) / (16 * mt) * across;
  for (int tile = warp; tile < tiles; tile += walk_threads / 32) {
    const int m0 = tile / across * 16 * mt, n0 = tile % across * 8 * nt;
    float d[mt][nt][4] = {};
    for (int k0 = 0; k0 < n; k0 += F::depth) {
      typename F::A a[mt];
#pragma unroll
      for (int i = 0; i < mt; ++i) F::a_columns(a[i], y, y_ld, m0 + 16 * i, k0, carry, lane);
#pragma unroll
      for (int j = 0; j < nt; ++j) {
        typename F::B b;
        F::b_columns(b, z, z_ld, n0 + 8 * j, k0, lane);
#pragma unroll
        for (int i = 0; i < mt; ++i) F::multiply(d[i][j], a[i], b);
      }
    }
#pragma unroll
    for (int i = 0; i < mt; ++i)
#pragma unroll
      for (int j = 0; j < nt; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = m0 + 16 * i + 8 * half + lane.g;
          auto* to = reinterpret_cast<float2*>(state + row * z_ld + ((n0 + 8 * j + 2 * lane.t) ^ lane.of_g));
          float2 value{d[i][j][2 * half], d[i][j][2 * half + 1]};
          if (add) {
            const float2 old = *to;
            value.x += decay * old.x, value.y += decay * old.y;
          }
          *to = value;
        }
  }
}

/// tiles: a slice of `outer` has 16 · tiles columns. Blocks [B H segments, slices, roles].
template <Precision precision, int tiles>
__global__ void __launch_bounds__(walk_threads, 2) ssd_walk_kernel(const __grid_constant__ Walk s) {
  using F = Fragments<precision>;
  constexpr int slice = 16 * tiles, z_ld = slice < 32 ? 32 : slice, m_ld = ssd_chunk;
  const WalkRole& role = s.roles[blockIdx.z];
  const int x_ld = (s.inner_room + 31) / 32 * 32, x_size = ssd_chunk * x_ld, z_size = ssd_chunk * z_ld;
  const int x_room = x_size < ssd_chunk * m_ld ? ssd_chunk * m_ld : x_size, stage = x_room + x_size + z_size;
  auto& f = *dynamic_shared<WalkShared>();
  float* state = reinterpret_cast<float*>(&f + 1);
  float* buffers = state + s.inner_room * z_ld;

  const Lane lane;
  const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, tile_row = warp / 2, half = warp % 2;
  const int sequence = static_cast<int>(blockIdx.x) / s.segments,
            piece = static_cast<int>(blockIdx.x) % s.segments;
  const int b = sequence / s.H, h = sequence % s.H, o0 = static_cast<int>(blockIdx.y) * slice;
  const int width = s.outer - o0 < slice ? s.outer - o0 : slice;
  const int first = piece * s.segment, last = first + s.segment < s.chunks ? first + s.segment : s.chunks;
  const bool reverse = role.reverse;
  const auto head_of = [&](int heads) { return heads == s.H ? h : h * heads / s.H; };

  const auto issue = [&](int step) {
    const int c = reverse ? last - 1 - step : first + step;
    const int64_t t0 = int64_t{c} * ssd_chunk;
    const int n = s.steps - t0 < ssd_chunk ? static_cast<int>(s.steps - t0) : ssd_chunk;
    float* x = buffers + (s.stages == 2 && step % 2 ? stage : 0);
    if (!s.states_only)
      stage_rows(x, x_ld, role.x.row(b, head_of(role.x_heads), t0), role.x.time, n, s.inner, s.inner_room,
                 s.aligned);
    stage_rows(x + x_room, x_ld, role.y.row(b, head_of(role.y_heads), t0), role.y.time, n, s.inner,
               s.inner_room, s.aligned);
    stage_rows(x + x_room + x_size, z_ld, role.z.row(b, head_of(role.z_heads), t0) + o0, role.z.time, n,
               width, slice, s.aligned);
    copy_commit();
  };

  issue(0);
  bool has_state = !s.states_only && s.segments > 1 && piece != (reverse ? s.segments - 1 : 0);
  if (has_state) {
    const float* from = role.states + static_cast<int64_t>(blockIdx.x) * s.inner * s.outer + o0;
    for (int e = tid; e < s.inner_room * slice; e += walk_threads) {
      const int row = e / slice, column = e % slice;
      state[swizzled(row, column, z_ld)] =
          row < s.inner && column < width ? from[int64_t{row} * s.outer + column] : 0.0f;
    }
  }
  float total_decay = 1;
  double skipped = 0;
  for (int step = 0; step < last - first; ++step) {
    const int c = reverse ? last - 1 - step : first + step;
    const int64_t t0 = int64_t{c} * ssd_chunk;
    const int n = s.steps - t0 < ssd_chunk ? static_cast<int>(s.steps - t0) : ssd_chunk;
    float *x = buffers + (s.stages == 2 && step % 2 ? stage : 0), *y = x + x_room, *z = y + x_size, *m = x;
    const bool more = step + 1 < last - first;
    if (s.stages == 2 && more) issue(step + 1);
    float decay = 1;
    if (warp == 0) decay = load_walk_factors(f, s, role, b, h, t0, n);
    if (s.stages == 2 && more)
      copy_wait<1>();
    else
      copy_wait<0>();
    __syncthreads();
    if (s.log_a.data) decay = expf(static_cast<float>(f.sum[ssd_chunk - 1]));
    total_decay *= decay;

    if (!s.states_only) {
      const int row0 = 16 * tile_row;
      const bool live = row0 < n,
                 pairs = live && (reverse ? half == 1 || tile_row < 2 : half == 0 || tile_row >= 2);
      float pair[4][4] = {}, out[tiles][4] = {};
      if (live && (pairs || has_state))
        for (int k0 = 0; k0 < s.inner_room; k0 += F::depth) {
          typename F::A a;
          F::a_rows(a, x + row0 * x_ld, x_ld, k0, lane);
          if (pairs)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              typename F::B v;
              F::b_rows(v, y + (32 * half + 8 * j) * x_ld, x_ld, k0, lane);
              F::multiply(pair[j], a, v);
            }
          if (has_state)
#pragma unroll
            for (int j = 0; j < tiles; ++j) {
              typename F::B v;
              F::b_columns(v, state, z_ld, half * (slice / 2) + 8 * j, k0, lane);
              F::multiply(out[j], a, v);
            }
        }
      __syncthreads();  // x is read: m takes its place; the state may change

      const int rows[2] = {row0 + lane.g, row0 + lane.g + 8};
      double dots[2] = {};
      const bool dotted = role.dots != WalkDots::none;  // uniform: shuffles follow
      const float* dotted_rows[2] = {};
      if (role.dotted.data)
#pragma unroll
        for (int r = 0; r < 2; ++r)
          if (rows[r] < n) dotted_rows[r] = role.dotted.row(b, head_of(role.dotted_heads), t0 + rows[r]) + o0;
      const auto add_dots = [&] {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          if (!dotted_rows[r]) continue;
          float sum = 0;
#pragma unroll
          for (int j = 0; j < tiles; ++j)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              const int column = half * (slice / 2) + 8 * j + 2 * lane.t + e;
              if (column < width) sum += out[j][2 * r + e] * dotted_rows[r][column];
            }
          dots[r] += static_cast<double>(sum);
        }
      };

      if (s.log_a.data) {
        const double end = f.sum[ssd_chunk - 1];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const double own = f.sum[rows[r]];
          if (has_state) {
            const float faded = expf(static_cast<float>(reverse ? end - own : own));
#pragma unroll
            for (int j = 0; j < tiles; ++j) out[j][2 * r] *= faded, out[j][2 * r + 1] *= faded;
          }
          if (pairs)
#pragma unroll
            for (int j = 0; j < 4; ++j)
#pragma unroll
              for (int e = 0; e < 2; ++e) {
                const double other = f.sum[32 * half + 8 * j + 2 * lane.t + e];
                const float d = static_cast<float>(reverse ? other - own : own - other);
                pair[j][2 * r + e] *= expf(d);
              }
        }
      }
      if (has_state && role.dots == WalkDots::state_part) add_dots();

      if (pairs)
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const int column = 32 * half + 8 * j + 2 * lane.t;
            float(&p)[4] = pair[j];
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              const bool kept = reverse ? column + e >= rows[r] : column + e <= rows[r];
              p[2 * r + e] = kept ? p[2 * r + e] * f.source[column + e] : 0.0f;
            }
            *reinterpret_cast<float2*>(m + rows[r] * m_ld + (column ^ lane.of_g)) = {p[2 * r], p[2 * r + 1]};
          }
      __syncthreads();

      const int k_first = reverse ? row0 : 0, k_last = reverse ? (n + 15) / 16 * 16 : row0 + 16;
      if (live)
        for (int k0 = k_first; k0 < k_last; k0 += F::depth) {
          typename F::A a;
          F::a_rows(a, m + row0 * m_ld, m_ld, k0, lane);
#pragma unroll
          for (int j = 0; j < tiles; ++j) {
            typename F::B v;
            F::b_columns(v, z, z_ld, half * (slice / 2) + 8 * j, k0, lane);
            F::multiply(out[j], a, v);
          }
        }
      if (role.dots == WalkDots::all) add_dots();

      if (role.flow && pairs) {  // E = M ∘ q kᵀ, of this slice's columns of q and k
        float qk[4][4] = {};
        for (int k0 = 0; k0 < slice; k0 += F::depth) {
          typename F::A a;
          F::a_far(a, dotted_rows[0], dotted_rows[1], k0, width, lane);
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            typename F::B v;
            F::b_rows(v, z + (32 * half + 8 * j) * z_ld, z_ld, k0, lane);
            F::multiply(qk[j], a, v);
          }
        }
        double* starts =
            role.starts + ((static_cast<int64_t>(blockIdx.y) * 4 + tile_row) * s.B + b) * s.steps * s.H;
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int column = 32 * half + 8 * j + 2 * lane.t + e;
            double down = 0;
#pragma unroll
            for (int r = 0; r < 2; ++r)
              if (column < rows[r]) {
                const auto product = static_cast<double>(pair[j][2 * r + e] * qk[j][2 * r + e]);
                dots[r] += product, down += product;
              }
            down = sum_over_rows(down);
            if (lane.g == 0 && column < n) starts[(t0 + column) * s.H + h] = down;
          }
      }
      if (dotted) {
        double* sums = role.sums + ((static_cast<int64_t>(blockIdx.y) * 2 + half) * s.B + b) * s.steps * s.H;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const double sum = sum_over_columns(dots[r]);
          if (lane.t == 0 && rows[r] < n) sums[(t0 + rows[r]) * s.H + h] = sum;
        }
      }
      const float skip = role.skip.data ? role.skip.at(0, 0, h) : 0.0f;
      if (role.skip_sums)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          if (!dotted_rows[r]) continue;
          float sum = 0;
#pragma unroll
          for (int j = 0; j < tiles; ++j) {
            const int column = half * (slice / 2) + 8 * j + 2 * lane.t;
            const float2 own = two_at(z + rows[r] * z_ld + (column ^ lane.of_g));
            if (column < width) sum += own.x * dotted_rows[r][column];
            if (column + 1 < width) sum += own.y * dotted_rows[r][column + 1];
          }
          skipped += static_cast<double>(sum);
        }
      if (role.out.data)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          if (rows[r] >= n) continue;
          const float factor = role.target.at(b, t0 + rows[r], h);
          float* to = role.out.row(b, head_of(role.out_heads), t0 + rows[r]) + o0;
#pragma unroll
          for (int j = 0; j < tiles; ++j) {
            const int column = half * (slice / 2) + 8 * j + 2 * lane.t;
            float2 value{factor * out[j][2 * r], factor * out[j][2 * r + 1]};
            if (role.skip.data) {
              const float2 own = two_at(z + rows[r] * z_ld + (column ^ lane.of_g));
              value.x += skip * own.x, value.y += skip * own.y;
            }
            if (s.aligned && column < width)
              *reinterpret_cast<float2*>(to + column) = value;
            else {
              if (column < width) to[column] = value.x;
              if (column + 1 < width) to[column + 1] = value.y;
            }
          }
        }
    }
    if (more || s.states_only) {
      const bool add = has_state;
      const auto update = [&]<int mt, int nt>() {
        update_state<precision, mt, nt>(state, y, x_ld, z, z_ld, f.carry, decay, add, s.inner_room, slice,
                                        (n + 15) / 16 * 16, lane);
      };
      if constexpr (tiles == 1) {
        update.template operator()<1, 2>();
      } else {
        if (s.inner_room % 32 == 0 && s.inner_room * slice >= 8192)
          update.template operator()<2, 4>();
        else if (s.inner_room * slice >= 4096)
          update.template operator()<1, 4>();
        else
          update.template operator()<1, 2>();
      }
    }
    has_state = true;
    __syncthreads();
    if (s.stages == 1 && more) issue(step + 1);
  }
  if (!s.states_only) {
    if (!role.skip_sums) return;
    skipped = sum_over_rows(sum_over_columns(skipped));
    const int64_t block = static_cast<int64_t>(blockIdx.x) * gridDim.y + blockIdx.y;
    if (tid % 32 == 0) role.skip_sums[block * (walk_threads / 32) + warp] = skipped;
    return;
  }
  float* to = role.states + static_cast<int64_t>(blockIdx.x) * s.inner * s.outer + o0;
  for (int e = tid; e < s.inner * width; e += walk_threads) {
    const int row = e / width, column = e % width;
    to[int64_t{row} * s.outer + column] = state[swizzled(row, column, z_ld)];
  }
  if (blockIdx.y == 0 && blockIdx.z == 0 && tid == 0) s.decays[blockIdx.x] = total_decay;
}

}  // namespace

template <Precision precision>
void launch_walk(const Context& ctx, const Walk& s, int slice, size_t shared, dim3 grid) {
  const auto start = [&](auto kernel) { launch(ctx, kernel, grid, walk_threads, shared, s); };
  if (slice == 16)
    start(ssd_walk_kernel<precision, 1>);
  else if (slice == 32)
    start(ssd_walk_kernel<precision, 2>);
  else if (slice == 64)
    start(ssd_walk_kernel<precision, 4>);
  else
    start(ssd_walk_kernel<precision, 8>);
}

}  // namespace eigentrace::kernels
#endif
