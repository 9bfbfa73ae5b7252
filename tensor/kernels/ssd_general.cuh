#pragma once
// The recurrence of ssd.cu on CUDA for any N, P and either type: the CPU body's phases, products in 64×64
// tiles of scalar multiply-adds. Chunks of 64; a block a chunk.
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/kernels/ssd_cuda.cuh"

namespace eigentrace::kernels {
namespace {

constexpr int general_threads = 256, general_depth = 16, general_pitch = 65;

/// Shared memory of a block: factors, what tile_product stages, and the matrices of pairs.
template <class T>
struct GeneralShared {
  SharedFactors<T> f;
  T stage[2][general_depth][general_pitch];
  T pairs[ssd_chunk][general_pitch];
  T second[ssd_chunk][general_pitch];
  double rows[4][ssd_chunk];
  double partial[general_threads];
};

/// A thread's part of a 64×64 tile: rows ty + 16 r, columns tx + 16 s.
template <class T>
struct GeneralTile {
  T at[4][4] = {};
  int ty = static_cast<int>(threadIdx.x) / 16, tx = static_cast<int>(threadIdx.x) % 16;

  /// += A B, a(i, k), b(k, j) for i, j < 64, k < depth. along: neighbouring threads read neighbouring k.
  template <bool a_along, bool b_along, class A, class B>
  __device__ __forceinline__ void add(GeneralShared<T>& room, int depth, const A& a, const B& b) {
    const int tid = static_cast<int>(threadIdx.x);
    for (int k0 = 0; k0 < depth; k0 += general_depth) {
      __syncthreads();
      for (int e = tid; e < general_depth * 64; e += general_threads) {
        const int ka = a_along ? e % general_depth : e / 64, i = a_along ? e / general_depth : e % 64;
        const int kb = b_along ? e % general_depth : e / 64, j = b_along ? e / general_depth : e % 64;
        room.stage[0][ka][i] = k0 + ka < depth ? a(i, k0 + ka) : T(0);
        room.stage[1][kb][j] = k0 + kb < depth ? b(k0 + kb, j) : T(0);
      }
      __syncthreads();
#pragma unroll
      for (int k = 0; k < general_depth; ++k) {
        T x[4], y[4];
#pragma unroll
        for (int r = 0; r < 4; ++r)
          x[r] = room.stage[0][k][ty + 16 * r], y[r] = room.stage[1][k][tx + 16 * r];
#pragma unroll
        for (int r = 0; r < 4; ++r)
#pragma unroll
          for (int s = 0; s < 4; ++s) at[r][s] += x[r] * y[s];
      }
    }
  }
  /// body(i, j, value) for the thread's elements.
  template <class Body>
  __device__ __forceinline__ void each(const Body& body) const {
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
      for (int s = 0; s < 4; ++s) body(ty + 16 * r, tx + 16 * s, at[r][s]);
  }
};

/// x_i·y_j of rows i, j of one chunk.
template <class T>
__device__ __forceinline__ GeneralTile<T> row_products(GeneralShared<T>& room, const T* x, int64_t x_stride,
                                                       const T* y, int64_t y_stride, int n, int width) {
  GeneralTile<T> tile;
  tile.template add<true, true>(
      room, width, [&](int i, int k) { return i < n ? x[i * x_stride + k] : T(0); },
      [&](int k, int j) { return j < n ? y[j * y_stride + k] : T(0); });
  return tile;
}

/// Own contribution of each chunk to the state after it (reverse: to the gradient before it).
template <class T>
__global__ void ssd_states_kernel(SsdOperands<T> s, bool reverse) {
  auto& room = *dynamic_shared<GeneralShared<T>>();
  const ChunkPlace at(blockIdx.x, s.H, s.chunks);
  const int n = s.steps(at.c), tiles_p = (s.P + 63) / 64;
  const int64_t t0 = int64_t{at.c} * ssd_chunk;
  const int n0 = static_cast<int>(blockIdx.y) / tiles_p * 64,
            p0 = static_cast<int>(blockIdx.y) % tiles_p * 64;
  load_factors(room.f, s.log_a, s.w, at.b, at.h, t0, n);
  T* to = (reverse ? s.later : s.states) + blockIdx.x * s.state_size();
  if (blockIdx.y == 0 && threadIdx.x == 0) s.decays[blockIdx.x] = room.f.decay;
  GeneralTile<T> tile;
  if (at.c != (reverse ? 0 : s.chunks - 1)) {
    const Heads<T>&left = reverse ? s.q : s.k, &right = reverse ? s.dy : s.v;
    const T *x = left.row(at.b, s.group(at.h), t0), *z = right.row(at.b, at.h, t0);
    tile.template add<false, false>(
        room, n, [&](int i, int k) { return n0 + i < s.N ? x[k * left.time + n0 + i] : T(0); },
        [&](int k, int j) {
          if (p0 + j >= s.P) return T(0);
          return z[k * right.time + p0 + j] *
                 (reverse ? room.f.from_start[k] : room.f.to_end[k] * room.f.weight[k]);
        });
  }
  tile.each([&](int i, int j, T value) {
    if (n0 + i < s.N && p0 + j < s.P) to[int64_t{n0 + i} * s.P + p0 + j] = value;
  });
}

template <class T>
__global__ void ssd_outputs_kernel(SsdOperands<T> s) {
  auto& room = *dynamic_shared<GeneralShared<T>>();
  const ChunkPlace at(blockIdx.x, s.H, s.chunks);
  const int n = s.steps(at.c), g = s.group(at.h);
  const int64_t t0 = int64_t{at.c} * ssd_chunk;
  const T *q = s.q.row(at.b, g, t0), *k = s.k.row(at.b, g, t0), *v = s.v.row(at.b, at.h, t0);
  const T* state = s.states + blockIdx.x * s.state_size();
  T* y = s.y.row(at.b, at.h, t0);
  load_factors(room.f, s.log_a, s.w, at.b, at.h, t0, n);
  row_products(room, q, s.q.time, k, s.k.time, n, s.N).each([&](int i, int j, T value) {
    room.pairs[i][j] = j <= i ? value * room.f.pair(i, j) * room.f.weight[j] : T(0);
  });
  for (int p0 = 0; p0 < s.P; p0 += 64) {
    GeneralTile<T> tile;
    tile.template add<true, false>(
        room, n, [&](int i, int j) { return room.pairs[i][j]; },
        [&](int j, int p) { return p0 + p < s.P ? v[j * s.v.time + p0 + p] : T(0); });
    if (at.c > 0)
      tile.template add<true, false>(
          room, s.N, [&](int i, int e) { return i < n ? q[i * s.q.time + e] * room.f.from_start[i] : T(0); },
          [&](int e, int p) { return p0 + p < s.P ? state[int64_t{e} * s.P + p0 + p] : T(0); });
    tile.each([&](int i, int p, T value) {
      if (i < n && p0 + p < s.P) y[i * s.y.time + p0 + p] = value;
    });
  }
}

/// dq (of_keys: dk) of one chunk and group, summed over the group's heads in order.
template <class T>
__global__ void ssd_qk_gradient_kernel(SsdOperands<T> s, bool of_keys) {
  auto& room = *dynamic_shared<GeneralShared<T>>();
  const ChunkPlace at(blockIdx.x, s.G, s.chunks);
  const int n = s.steps(at.c), per_group = s.H / s.G, n0 = static_cast<int>(blockIdx.y) * 64;
  const int64_t t0 = int64_t{at.c} * ssd_chunk;
  const Heads<T>&other = of_keys ? s.q : s.k, &to = of_keys ? s.dk : s.dq;
  const T* x = other.row(at.b, at.h, t0);
  GeneralTile<T> tile;
  for (int h = at.h * per_group; h < (at.h + 1) * per_group; ++h) {
    const T *v = s.v.row(at.b, h, t0), *dy = s.dy.row(at.b, h, t0);
    const int64_t item = (int64_t{at.b} * s.H + h) * s.chunks + at.c;
    load_factors(room.f, s.log_a, s.w, at.b, h, t0, n);
    row_products(room, dy, s.dy.time, v, s.v.time, n, s.P).each([&](int i, int j, T z) {
      const T value = j <= i ? z * room.f.pair(i, j) * room.f.weight[j] : T(0);
      (of_keys ? room.pairs[j][i] : room.pairs[i][j]) = value;
    });
    tile.template add<true, false>(
        room, n, [&](int i, int j) { return room.pairs[i][j]; },
        [&](int j, int e) { return n0 + e < s.N ? x[j * other.time + n0 + e] : T(0); });
    if (of_keys ? at.c + 1 < s.chunks : at.c > 0) {
      const T *rows = of_keys ? v : dy, *state = (of_keys ? s.later : s.states) + item * s.state_size();
      const int64_t stride = of_keys ? s.v.time : s.dy.time;
      tile.template add<true, true>(
          room, s.P,
          [&](int i, int p) {
            if (i >= n) return T(0);
            return rows[i * stride + p] *
                   (of_keys ? room.f.to_end[i] * room.f.weight[i] : room.f.from_start[i]);
          },
          [&](int p, int e) { return n0 + e < s.N ? state[int64_t{n0 + e} * s.P + p] : T(0); });
    }
  }
  T* out = to.row(at.b, at.h, t0);
  tile.each([&](int i, int e, T value) {
    if (i < n && n0 + e < s.N) out[i * to.time + n0 + e] = value;
  });
}

/// dv and dw of one chunk and head.
template <class T>
__global__ void ssd_v_gradient_kernel(SsdOperands<T> s) {
  auto& room = *dynamic_shared<GeneralShared<T>>();
  const ChunkPlace at(blockIdx.x, s.H, s.chunks);
  const int n = s.steps(at.c), g = s.group(at.h);
  const int64_t t0 = int64_t{at.c} * ssd_chunk;
  const T *q = s.q.row(at.b, g, t0), *k = s.k.row(at.b, g, t0), *v = s.v.row(at.b, at.h, t0),
          *dy = s.dy.row(at.b, at.h, t0), *after = s.later + blockIdx.x * s.state_size();
  load_factors(room.f, s.log_a, s.w, at.b, at.h, t0, n);
  row_products(room, q, s.q.time, k, s.k.time, n, s.N).each([&](int i, int j, T value) {
    room.pairs[j][i] = j <= i ? value * room.f.pair(i, j) : T(0);
  });
  T dw[4] = {};
  for (int p0 = 0; p0 < s.P; p0 += 64) {
    GeneralTile<T> tile;
    tile.template add<true, false>(
        room, n, [&](int j, int i) { return room.pairs[j][i]; },
        [&](int i, int p) { return p0 + p < s.P ? dy[i * s.dy.time + p0 + p] : T(0); });
    if (at.c + 1 < s.chunks)
      tile.template add<true, false>(
          room, s.N, [&](int j, int e) { return j < n ? k[j * s.k.time + e] * room.f.to_end[j] : T(0); },
          [&](int e, int p) { return p0 + p < s.P ? after[int64_t{e} * s.P + p0 + p] : T(0); });
    T* dv = s.dv.data ? s.dv.row(at.b, at.h, t0) : nullptr;
    tile.each([&](int j, int p, T u) {
      if (j >= n || p0 + p >= s.P) return;
      if (dv) dv[j * s.dv.time + p0 + p] = room.f.weight[j] * u;
      dw[j / 16] += u * v[j * s.v.time + p0 + p];
    });
  }
  if (!s.dw.data) return;
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    for (int d = 8; d > 0; d /= 2) dw[r] += __shfl_xor_sync(0xFFFFFFFFu, dw[r], d, 16);
    const int j = static_cast<int>(threadIdx.x) / 16 + 16 * r;
    if (threadIdx.x % 16 == 0 && j < n) s.dw.at(at.b, t0 + j, at.h) = dw[r];
  }
}

/// to[i] = factor_i Σ_e x_ie Σ_p z_ip S_ep, rows of one chunk.
template <class T, class Factor>
__device__ __forceinline__ void through_state(GeneralShared<T>& room, const SsdOperands<T>& s, const T* x,
                                              int64_t x_stride, const T* z, int64_t z_stride, const T* state,
                                              int n, const Factor& factor, double* to) {
  double sum[4] = {};
  for (int n0 = 0; n0 < s.N; n0 += 64) {
    GeneralTile<T> tile;
    tile.template add<true, true>(
        room, s.P, [&](int i, int p) { return i < n ? z[i * z_stride + p] : T(0); },
        [&](int p, int e) { return n0 + e < s.N ? state[int64_t{n0 + e} * s.P + p] : T(0); });
    tile.each([&](int i, int e, T value) {
      if (i < n && n0 + e < s.N) sum[i / 16] += static_cast<double>(value * x[i * x_stride + n0 + e]);
    });
  }
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    for (int d = 8; d > 0; d /= 2) sum[r] += __shfl_xor_sync(0xFFFFFFFFu, sum[r], d, 16);
    const int i = static_cast<int>(threadIdx.x) / 16 + 16 * r;
    if (threadIdx.x % 16 == 0) to[i] = static_cast<double>(factor(i)) * sum[r];
  }
}

/// dlog_a of one chunk and head.
template <class T>
__global__ void ssd_flow_kernel(SsdOperands<T> s) {
  auto& room = *dynamic_shared<GeneralShared<T>>();
  const ChunkPlace at(blockIdx.x, s.H, s.chunks);
  const int n = s.steps(at.c), g = s.group(at.h), tid = static_cast<int>(threadIdx.x);
  const int64_t t0 = int64_t{at.c} * ssd_chunk;
  const T *q = s.q.row(at.b, g, t0), *k = s.k.row(at.b, g, t0), *v = s.v.row(at.b, at.h, t0),
          *dy = s.dy.row(at.b, at.h, t0);
  const T *before = s.states + blockIdx.x * s.state_size(), *after = s.later + blockIdx.x * s.state_size();
  load_factors(room.f, s.log_a, s.w, at.b, at.h, t0, n);
  row_products(room, q, s.q.time, k, s.k.time, n, s.N).each([&](int i, int j, T value) {
    room.pairs[i][j] = j < i ? value * room.f.pair(i, j) * room.f.weight[j] : T(0);
  });
  row_products(room, dy, s.dy.time, v, s.v.time, n, s.P).each([&](int i, int j, T z) {
    room.pairs[i][j] = j < i ? room.pairs[i][j] * z : T(0);
  });
  __syncthreads();
  double(&rows)[4][ssd_chunk] = room.rows;  // ends at i, starts at j, from the state, to the state
  if (tid < ssd_chunk) {
    double sum = 0;
    for (int j = 0; j < tid; ++j) sum += static_cast<double>(room.pairs[tid][j]);
    rows[0][tid] = sum, rows[2][tid] = 0;
  } else if (tid < 2 * ssd_chunk) {
    const int j = tid - ssd_chunk;
    double sum = 0;
    for (int i = j + 1; i < n; ++i) sum += static_cast<double>(room.pairs[i][j]);
    rows[1][j] = sum, rows[3][j] = 0;
  }
  __syncthreads();
  const bool from = at.c > 0, to = at.c + 1 < s.chunks;
  if (from)
    through_state(
        room, s, q, s.q.time, dy, s.dy.time, before, n, [&](int i) { return room.f.from_start[i]; }, rows[2]);
  if (to)
    through_state(
        room, s, k, s.k.time, v, s.v.time, after, n,
        [&](int j) { return room.f.to_end[j] * room.f.weight[j]; }, rows[3]);
  double passed = 0;
  if (from && to)
    for (int64_t e = tid; e < s.state_size(); e += general_threads)
      passed += static_cast<double>(before[e]) * static_cast<double>(after[e]);
  room.partial[tid] = passed;
  for (int d = general_threads / 2; d > 0; d /= 2) {
    __syncthreads();
    if (tid < d) room.partial[tid] += room.partial[tid + d];
  }
  __syncthreads();
  if (tid >= n) return;
  double sum = static_cast<double>(room.f.decay) * room.partial[0];
  for (int j = 0; j < tid; ++j) sum += rows[3][j];
  double rest = 0;
  for (int i = n - 1; i >= tid; --i) rest += rows[0][i] - rows[1][i] + rows[2][i];
  if (s.flow)
    s.flow[(int64_t{at.b} * s.T_ + t0 + tid) * s.H + at.h] = sum + rest;
  else
    s.dlog_a.at(at.b, t0 + tid, at.h) = static_cast<T>(sum + rest);
}

template <class T>
void ssd_prefix(const Context& ctx, const SsdOperands<T>& s, bool reverse) {
  const int64_t sequences = int64_t{s.B} * s.H, elements = int64_t{s.N} * s.P;
  launch(ctx, ssd_prefix_kernel<T>, blocks_for(sequences * elements, 256), 256, 0,
         reverse ? s.later : s.states, s.decays, sequences, s.chunks, elements, reverse);
}

template <class T>
void ssd_general(const Context& ctx, const SsdOperands<T>& s) {
  const auto items = static_cast<unsigned>(s.B * s.H * s.chunks);
  const auto tiles = static_cast<unsigned>((s.N + 63) / 64 * ((s.P + 63) / 64));
  const size_t room = sizeof(GeneralShared<T>);
  launch(ctx, ssd_states_kernel<T>, dim3(items, tiles), general_threads, room, s, false);
  ssd_prefix(ctx, s, false);
  launch(ctx, ssd_outputs_kernel<T>, items, general_threads, room, s);
}

template <class T>
void ssd_backward_general(const Context& ctx, const SsdOperands<T>& s) {
  const auto items = static_cast<unsigned>(s.B * s.H * s.chunks);
  const auto grouped = static_cast<unsigned>(s.B * s.G * s.chunks);
  const auto tiles_n = static_cast<unsigned>((s.N + 63) / 64),
             tiles_p = static_cast<unsigned>((s.P + 63) / 64);
  const size_t room = sizeof(GeneralShared<T>);
  const bool flows = s.dlog_a.data, wants_v = s.dv.data || s.dw.data;
  if (s.dq.data || flows) {
    launch(ctx, ssd_states_kernel<T>, dim3(items, tiles_n * tiles_p), general_threads, room, s, false);
    ssd_prefix(ctx, s, false);
  }
  if (s.dk.data || wants_v || flows) {
    launch(ctx, ssd_states_kernel<T>, dim3(items, tiles_n * tiles_p), general_threads, room, s, true);
    ssd_prefix(ctx, s, true);
  }
  if (s.dq.data)
    launch(ctx, ssd_qk_gradient_kernel<T>, dim3(grouped, tiles_n), general_threads, room, s, false);
  if (s.dk.data)
    launch(ctx, ssd_qk_gradient_kernel<T>, dim3(grouped, tiles_n), general_threads, room, s, true);
  if (wants_v) launch(ctx, ssd_v_gradient_kernel<T>, items, general_threads, room, s);
  if (!flows) return;
  launch(ctx, ssd_flow_kernel<T>, items, general_threads, room, s);
  if (s.flow)
    launch(ctx, ssd_flow_per_head_kernel<T>, static_cast<unsigned>(s.H), 256, 256 * sizeof(double), s.flow,
           int64_t{s.B} * s.T_, s.H, s.dlog_a);
}

}  // namespace
}  // namespace eigentrace::kernels
#endif
