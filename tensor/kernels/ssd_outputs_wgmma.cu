// ssd_outputs_kernel by wgmma, which sm_90a alone has: TF32, N = P = 128, 64 columns of y a block, two blocks
// a processor. y is made lying down, yᵀ = Sᵀ qᵀ fade + vᵀ Mᵀ, by one warpgroup, while the other one makes M =
// D w ∘ (q kᵀ) and the normaliser; see ssd_gradients_wgmma.cu.
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/gemm_outer_wgmma.h"
#include "tensor/kernels/ssd_wgmma.cuh"
#include "tensor/launch.h"

namespace eigentrace::kernels {
namespace {

constexpr int slice = 64, threads = 2 * group_threads;
/// M and what y's rows are multiplied by come where k was.
[[maybe_unused]] constexpr int q_at = 0, k_at = tile_bytes, v_at = 2 * tile_bytes,
                               state_at = v_at + 2 * part_bytes, small_at = state_at + 4 * part_bytes,
                               m_at = k_at, factor_at = k_at + pairs_bytes;
struct Steps {
  float2 sum[ssd_chunk];
  float weight[ssd_chunk], fade[ssd_chunk];
};
constexpr size_t bytes = small_at + sizeof(Steps);

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// Named barriers: state and v are there; k is used up; M is there.
enum Barrier { of_state_v = 1, k_used_up, pairs_there };

/// d (+)= A B over 8 `steps` of k; load(a, step): fragments of eight k.
template <int steps, class Load>
__device__ __forceinline__ void multiply_turned_half(float (&d)[32], const Load& load, uint32_t b,
                                                     bool adds) {
  uint32_t a[2][4][4];
#pragma unroll
  for (int i = 0; i < steps / 4; ++i) {
#pragma unroll
    for (int e = 0; e < 4; ++e) load(a[i % 2][e], 4 * i + e);
    wgmma_pin(a[i % 2]);
    if (i == 0) wgmma_pin(d);
    wgmma_fence();
#pragma unroll
    for (int e = 0; e < 4; ++e)
      wgmma_tf32<64>(d, a[i % 2][e], eight_of(b, 4 * i + e), adds || i > 0 || e > 0);
    wgmma_commit();
    wgmma_wait<1>();
    if (i > 0) wgmma_pin(a[(i + 1) % 2]);
  }
  wgmma_wait<0>();
  wgmma_pin(a[(steps / 4 + 1) % 2]), wgmma_pin(d);
}
#endif

/// Blocks [chunks B H, slices]: late chunks first, since ssd_states_kernel has left them in the cache.
__global__ void __launch_bounds__(threads, 2)
    ssd_outputs_wgmma_kernel([[maybe_unused]] const __grid_constant__ SsdPass s) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  unsigned char* const shared = tiles_shared();
  const auto base = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  Steps& f = *reinterpret_cast<Steps*>(shared + small_at);
  float* const factor = reinterpret_cast<float*>(shared + factor_at);
  const int sequences = s.B * s.H, c = s.chunks - 1 - static_cast<int>(blockIdx.x) / sequences;
  const int sequence = static_cast<int>(blockIdx.x) % sequences, b = sequence / s.H, h = sequence % s.H,
            of_group = h * s.G / s.H, p0 = static_cast<int>(blockIdx.y) * slice;
  const int64_t t0 = int64_t{c} * ssd_chunk, item = int64_t{sequence} * s.chunks + c;
  const int n = s.steps - t0 < ssd_chunk ? static_cast<int>(s.steps - t0) : ssd_chunk;
  const bool factors = s.decays || s.weighs;
  const float* state = s.states + item * s.elements;
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, g = lane / 4, t = lane % 4;
  const int all_warp = __shfl_sync(0xFFFFFFFFu, tid / 32, 0), group = all_warp / 4, warp = all_warp % 4;

  const auto copy_rows = [&](int at, const float* from, int64_t stride) {  // a row a warp
    const float* x = from + all_warp * stride + 4 * lane;
    unsigned char* to = shared + at + lane / 8 * part_bytes + all_warp * 128 + ((lane % 8 ^ all_warp) << 4);
#pragma unroll
    for (int i = 0; i < 8; ++i, x += 8 * stride) {
      const bool valid = 8 * i + all_warp < n;
      copy_async_16(to + i * 1024, valid ? x : from, valid);
    }
  };
  const auto copy_halves = [&]<int rows>(int at, const float* from, int64_t stride, int there) {
    const int row = 2 * warp + lane / 16;  // two rows a warp, by the first warpgroup
    const float* x = from + row * stride + lane % 16 * 4;
    unsigned char* to = shared + at + lane % 16 / 8 * (rows * 128) + row * 128 + ((lane % 8 ^ row % 8) << 4);
#pragma unroll
    for (int i = 0; i < rows / 8; ++i, x += 8 * stride) {
      const bool valid = 8 * i + row < there;
      copy_async_16(to + i * 1024, valid ? x : from, valid);
    }
  };
  copy_rows(q_at, s.q.row(b, of_group, t0), s.q.time);
  copy_rows(k_at, s.k.row(b, of_group, t0), s.k.time);
  copy_commit();
  if (group == 0) {
    if (c > 0) copy_halves.template operator()<width>(state_at, state + p0, width, width);
    copy_halves.template operator()<ssd_chunk>(v_at, s.v.row(b, h, t0) + p0, s.v.time, n);
  }
  copy_commit();
  if (tid < ssd_chunk) {
    const int64_t at = item * ssd_chunk + tid;
    float2 sum{0, 0};
    float weight = 1, fade = 1;
    if (factors) sum = s.f.sum[at], weight = s.f.weight[at], fade = s.f.fade[at];
    f.sum[tid] = sum, f.weight[tid] = weight, f.fade[tid] = fade;
  }
  copy_wait<1>();
  fence_for_async();
  __syncthreads();

  if (group == 0) {
    copy_wait<0>();
    named_sync(of_state_v, group_threads);
    // A thread's two columns of each step: 32 bytes of a row for lanes g and g + 4, no bank twice for four
    // rows.
    const int piece = g / 2 % 2 * 4 + warp % 2 * 2 + g / 4, column = warp / 2 * 32 + piece * 4 + g % 2 * 2;
    const auto two = [&](const unsigned char* part, int row, int phase) {
      return two_at(reinterpret_cast<const float*>(part + row * 128 + ((piece ^ phase) << 4) + g % 2 * 8));
    };
    const unsigned char *v = shared + v_at + warp / 2 * part_bytes,
                        *before = shared + state_at + warp / 2 * 2 * part_bytes;
    float d[32] = {};
    if (c > 0) {
      multiply_turned_half<width / 8>(
          d,
          [&](uint32_t(&a)[4], int step) {
            const float2 x = two(before, 8 * step + t, t), y = two(before, 8 * step + t + 4, t + 4);
            a[0] = __float_as_uint(x.x), a[1] = __float_as_uint(x.y);
            a[2] = __float_as_uint(y.x), a[3] = __float_as_uint(y.y);
          },
          base + q_at, false);
      if (s.decays)
#pragma unroll
        for (int i = 0; i < 32; ++i) d[i] *= f.fade[i / 4 * 8 + 2 * t + i % 2];
    }
    named_sync(pairs_there, threads);
    multiply_turned_half<ssd_chunk / 8>(
        d,
        [&](uint32_t(&a)[4], int step) {
          const float2 x = two(v, 8 * step + t, t), y = two(v, 8 * step + t + 4, t + 4);
          a[0] = to_tf32(x.x), a[1] = to_tf32(x.y), a[2] = to_tf32(y.x), a[3] = to_tf32(y.y);
        },
        base + m_at, true);
    const float skip = s.skip.data ? s.skip.at(0, 0, h) : 0.0f;
    float* y = s.y.row(b, h, t0 + 2 * t) + p0 + column;
#pragma unroll
    for (int j = 0; j < 8; ++j, y += 8 * s.y.time) {
      const float2 rows = two_at(factor + 8 * j + 2 * t);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float row = e ? rows.y : rows.x;
        float2 value{row * d[4 * j + e], row * d[4 * j + 2 + e]};
        if (s.skip.data) {
          const float2 own = two(v, 8 * j + 2 * t + e, 2 * t + e);
          value.x += skip * own.x, value.y += skip * own.y;
        }
        if (8 * j + 2 * t + e < n) *reinterpret_cast<float2*>(y + e * s.y.time) = value;
      }
    }
  } else {
    float m[1][32] = {};
    start_products<1>(m, {base + q_at}, base + k_at);
    const int rows[2] = {16 * warp + g, 16 * warp + g + 8};
    float sums[2] = {}, row_factor[2];
    if (s.linear && c > 0)  // η of the chunks before
#pragma unroll 4
      for (int i = 0; i < width / 4; ++i) {
        const float keys = state[width * width + 4 * i + t];
#pragma unroll
        for (int r = 0; r < 2; ++r)
          sums[r] += keys * *reinterpret_cast<const float*>(shared + q_at + i / 8 * part_bytes +
                                                            rows[r] * 128 + ((i % 8 ^ g) << 4) + 4 * t);
      }
    else if (!s.linear)
#pragma unroll
      for (int r = 0; r < 2; ++r) row_factor[r] = rows[r] < n ? s.row.at(b, t0 + rows[r], h) : 0.0f;
    finish_products(m);
    named_sync(k_used_up, group_threads);
    const auto write_pairs = [&]<bool decayed>() {
      const float2 ends_of[2] = {f.sum[rows[0]], f.sum[rows[1]]};
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float4 begin = *reinterpret_cast<const float4*>(f.sum + 8 * j + 2 * t);
        const float2 weights = two_at(f.weight + 8 * j + 2 * t);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float pair[2];
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float value = m[0][4 * j + 2 * r + e];
            if constexpr (decayed)
              value *=
                  exp2f((ends_of[r].x - (e ? begin.z : begin.x)) + (ends_of[r].y - (e ? begin.w : begin.y))) *
                  (e ? weights.y : weights.x);
            value = 8 * j + 2 * t + e > rows[r] ? 0.0f : value;
            sums[r] += value, pair[e] = __uint_as_float(to_tf32(value));
          }
          *reinterpret_cast<float2*>(shared + m_at + j / 4 * part_bytes + rows[r] * 128 +
                                     (((8 * j + 2 * t) % 32 * 4) ^ (g << 4))) = {pair[0], pair[1]};
        }
      }
    };
    if (factors)
      write_pairs.template operator()<true>();
    else
      write_pairs.template operator()<false>();
    if (s.linear)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float eta = sum_over_columns(sums[r]);
        row_factor[r] = 1 / eta;
        if (t == 0 && p0 == 0 && rows[r] < n) s.log_eta.at(b, t0 + rows[r], h) = logf(eta);
      }
    if (t == 0) factor[rows[0]] = row_factor[0], factor[rows[1]] = row_factor[1];
    fence_for_async();
    named_sync(pairs_there, threads);
  }
#endif
}

}  // namespace

bool launch_outputs_wgmma(const Context& ctx, const SsdPass& s) {
  const bool fits =
      s.N == width && s.P == width && s.aligned && s.even && bytes <= s.shared && wgmma_exists(ctx);
  if (fits)
    launch(ctx, ssd_outputs_wgmma_kernel,
           dim3(static_cast<unsigned>(s.B * s.H * s.chunks), static_cast<unsigned>(width / slice)), threads,
           bytes, s);
  return fits;
}

}  // namespace eigentrace::kernels
#endif
