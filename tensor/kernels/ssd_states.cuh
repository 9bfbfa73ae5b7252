#pragma once
// States of every chunk: the first kernel of ssd_chunks.h. A block holds a slice of a state's columns in
// registers, as sums of its tensor cores, and walks the chunks, or makes the sum of one; chunks arrive in
// shared memory ahead of their use, with a barrier a chunk.
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/kernels/ssd_tiles.cuh"

namespace eigentrace::kernels {
namespace {

/// Tiles of a slice of `slice` columns of a state of Np rows, one a warp.
template <int Np, int slice>
struct StateTiles {
  static constexpr int mt = Np == 16 || slice == 32 ? 1 : 2, nt = mt == 2                   ? 4
                                                                  : Np == 16 && slice == 32 ? 1
                                                                                            : 2;
  static constexpr int across = slice / (8 * nt), warps = Np / (16 * mt) * across;
  static constexpr int x_ld = Np < 32 ? 32 : Np, stage = ssd_chunk * (x_ld + slice);
};

/// Blocks [B H or B H (chunks − 1), slices].
template <Precision precision, int Np, int slice>
__global__ void __launch_bounds__(32 * StateTiles<Np, slice>::warps, 2)
    ssd_states_kernel(const __grid_constant__ SsdStates s) {
  using F = Fragments<precision>;
  using Tiles = StateTiles<Np, slice>;
  constexpr int mt = Tiles::mt, nt = Tiles::nt, x_ld = Tiles::x_ld, stage = Tiles::stage,
                threads = 32 * Tiles::warps;
  auto* scales = dynamic_shared<float>();  // [2, 64]
  float* buffers = scales + 2 * ssd_chunk;
  const Lane lane;
  const int tid = static_cast<int>(threadIdx.x), warp = tid / 32;
  const int m0 = warp / Tiles::across * 16 * mt, n0 = warp % Tiles::across * 8 * nt;
  const int items = s.chunks - 1, count = s.whole ? items : 1;
  const int sequence = s.whole ? static_cast<int>(blockIdx.x) : static_cast<int>(blockIdx.x) / items;
  const int first = s.whole ? 0 : static_cast<int>(blockIdx.x) % items;
  const int b = sequence / s.H, h = sequence % s.H, xh = h * s.x_heads / s.H;
  const int p0 = static_cast<int>(blockIdx.y) * slice;
  const int width = s.P - p0 < slice ? s.P - p0 : slice;
  const auto chunk_of = [&](int step) { return s.reverse ? s.chunks - 1 - first - step : first + step; };

  const auto issue = [&](int step) {
    if (step < count) {
      const int c = chunk_of(step);
      const int64_t t0 = int64_t{c} * ssd_chunk;
      const int n = s.steps - t0 < ssd_chunk ? static_cast<int>(s.steps - t0) : ssd_chunk;
      float* x = buffers + step % s.stages * stage;
      stage_rows<threads, Np, x_ld>(x, s.x.row(b, xh, t0), s.x.time, n, s.N, s.aligned);
      stage_rows<threads, slice, slice>(x + ssd_chunk * x_ld, s.y.row(b, h, t0) + p0, s.y.time, n, width,
                                        s.aligned);
    }
    copy_commit();
  };
  float scale = 1, decay = 1;
  const auto load_factors = [&](int step) {
    if (step >= count) return;
    const int c = chunk_of(step);
    if (tid < ssd_chunk) {
      const int64_t t = int64_t{c} * ssd_chunk + tid,
                    at = (int64_t{sequence} * s.chunks + c) * ssd_chunk + tid;
      scale = s.scale ? s.scale[at] : t < s.steps ? s.row.at(b, t, h) : 0.0f;
      if (s.scale_2) scale *= s.scale_2[at];
    }
    if (s.decay) decay = s.decay[int64_t{sequence} * s.chunks + c];
  };

  load_factors(0);
  for (int step = 0; step + 1 < s.stages; ++step) issue(step);
  float d[mt][nt][4] = {}, z[mt][4] = {};
  const bool sums = s.sums && n0 == 0 && p0 == 0, scaled = s.scale || s.row.from.data;
  for (int step = 0; step < count; ++step) {
    float* scale_of = scales + step % 2 * ssd_chunk;
    if (tid < ssd_chunk) scale_of[tid] = scale;
    const float kept = decay;
    if (s.stages == 2)
      copy_wait<0>();
    else
      copy_wait<1>();
    if constexpr (Np == 16)
      if (s.mask.drops)
        mask_rows<threads, slice, slice>(buffers + step % s.stages * stage + ssd_chunk * x_ld, s.mask,
                                         b * int64_t{s.steps} + int64_t{chunk_of(step)} * ssd_chunk, h, p0,
                                         s.aligned);
    __syncthreads();
    issue(step + s.stages - 1);
    load_factors(step + 1);
    const float *x = buffers + step % s.stages * stage, *y = x + ssd_chunk * x_ld;
#pragma unroll
    for (int i = 0; i < mt; ++i)
#pragma unroll
      for (int j = 0; j < nt; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) d[i][j][e] *= kept;
    const auto add = [&]<bool scaled>() {
#pragma unroll(precision == Precision::fp32 && mt == 2 ? 1 : 4)
      for (int k0 = 0; k0 < ssd_chunk; k0 += F::depth) {
        typename F::A a[mt];
#pragma unroll
        for (int i = 0; i < mt; ++i)
          F::template a_columns<x_ld, scaled>(a[i], x + k0 * x_ld, m0 + 16 * i, scale_of + k0, lane);
#pragma unroll
        for (int j = 0; j < nt; ++j) {
          typename F::B v;
          F::template b_columns<slice>(v, y + k0 * slice + n0 / 32 * 32, j, n0 % 32, lane);
#pragma unroll
          for (int i = 0; i < mt; ++i) F::multiply(d[i][j], a[i], v);
        }
        if (sums) {
          typename F::B one;
          F::b_first(one, lane);
#pragma unroll
          for (int i = 0; i < mt; ++i) F::multiply(z[i], a[i], one);
        }
      }
    };
    if (scaled)
      add.template operator()<true>();
    else
      add.template operator()<false>();
    const int to_chunk = chunk_of(step) + (s.reverse ? -1 : 1);
    float* to = s.states + (int64_t{sequence} * s.chunks + to_chunk) * s.elements;
#pragma unroll
    for (int i = 0; i < mt; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = m0 + 16 * i + 8 * half + lane.g;
#pragma unroll
        for (int j = 0; j < nt; ++j)
          *reinterpret_cast<float2*>(to + row * s.Pp + p0 + n0 + 8 * j + 2 * lane.t) = {
              F::stored(d[i][j][2 * half]), F::stored(d[i][j][2 * half + 1])};
        if (sums && lane.t == 0) to[Np * s.Pp + row] = z[i][2 * half];
      }
  }
}

}  // namespace

template <Precision precision>
void launch_states(const Context& ctx, const SsdStates& s) {
  if (s.chunks < 2) return;
  const int64_t blocks = int64_t{s.B} * s.H * (s.whole ? 1 : s.chunks - 1);
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(s.Pp / s.slice));
  const auto start = [&]<int Np, int slice>() {
    using Tiles = StateTiles<Np, slice>;
    launch(ctx, ssd_states_kernel<precision, Np, slice>, grid, 32 * Tiles::warps,
           sizeof(float) * static_cast<size_t>(2 * ssd_chunk + s.stages * Tiles::stage), s);
  };
  if (s.Np == 16)
    s.slice == 128 ? start.template operator()<16, 128>() : start.template operator()<16, 32>();
  else if (s.Np == 64)
    s.slice == 128 ? start.template operator()<64, 128>() : start.template operator()<64, 32>();
  else
    start.template operator()<128, 64>();
}

}  // namespace eigentrace::kernels
#endif
