// outer_kernel's products by wgmma, which sm_90a alone has. See gemm_outer_wgmma.h.
//
// A block makes 128 x 256, each of its two warpgroups 64 x 256: A's fragments come from registers, which hold
// what lies in memory, B's tile from shared memory, where k must be dense: threads take 4 x 4 of it and write
// it down turned, rounded once. While the tensor cores work on one tile, the next is written and the one
// after it is on its way to registers, from the L2 cache, where it was asked for before; three places for B's
// tile, so that products follow each other without a gap.
//
// 51200 tokens, 1024 x 512: 53.7 GFLOP, 0.14 ms at cuBLAS's 390 TFLOP/s. A tile of 32 rows keeps the L1 cache
// and shared memory busy for 1400 cycles (256 for loads of B, 256 for A's copies and 128 for its reads, 256
// to write B, 512 to read it twice) and the tensor cores for 1024. Takes 0.213 ms on an H200, mma.sync 0.284;
// 640 x 512 0.135 instead of 0.179, 512 x 512 0.112 instead of 0.146. Without asking ahead 0.238, 0.150,
// 0.125.
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/gemm_outer_wgmma.h"

#include <cstdlib>

#include "tensor/launch.h"
#include "tensor/mma.h"
#include "tensor/wgmma.h"

namespace eigentrace {
namespace {

constexpr int ahead_of_b = 3;  // tiles, from memory to the L2 cache
constexpr int wgmma_threads = 256, places_of_b = 3, place_bytes = wgmma_columns * outer_depth * 4;
constexpr int stages_of_a = 3, a_row = wgmma_rows + 8,  // rows 32 bytes further apart: no bank twice
    side_at = outer_depth * a_row, a_stage = side_at + outer_depth;  // behind them the side row's factors
constexpr size_t wgmma_shared_bytes = size_t{places_of_b} * place_bytes + 1024 + stages_of_a * a_stage * 4;

/// Grid: tiles (columns first), pieces. Tiles all exist, and so do the rows. Each row of tiles makes one of
/// the rows of C past the last tile, if there are any, on the side: B's columns times a column of A, as they
/// pass through registers.
__global__ void __launch_bounds__(wgmma_threads, 1)
    outer_wgmma_kernel([[maybe_unused]] const __grid_constant__ OuterProduct p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  // The swizzle of 128 bytes repeats every 1024 bytes of the address.
  const uint32_t unaligned = static_cast<uint32_t>(__cvta_generic_to_shared(dynamic_shared<float>())),
                 places = (unaligned + 1023) / 1024 * 1024;
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int g = lane / 4, t = lane % 4;
  const int across = p.N / wgmma_columns, tile_column = static_cast<int>(blockIdx.x) % across;
  const int tile_row = static_cast<int>(blockIdx.x) / across, i0 = tile_row * wgmma_rows;
  const int j0 = tile_column * wgmma_columns;
  const int side = p.M / wgmma_rows * wgmma_rows + tile_row;
  const bool has_side = side < p.M;
  const int piece = static_cast<int>(blockIdx.y), k_begin = piece * p.length;
  const int depth = (p.K - k_begin < p.length ? p.K - k_begin : p.length) / outer_depth;
  const bool sums_wanted = p.sums && (p.turned ? i0 == 0 : tile_column == 0);
  float sums[2] = {}, sums_of_b[2][4] = {}, sum_of_side = 0;
  float d[128] = {};

  // A's tiles as they lie, whole rows a warp: three places, two tiles on their way.
  float* const places_of_a = dynamic_shared<float>() + (places_of_b * place_bytes + 1024) / 4;
  const float* from_a = p.a + (k_begin + warp) * p.a_ld + i0 + 4 * lane;
  const float* from_side = p.a + (k_begin + warp + 8 * (lane % 4)) * p.a_ld + side;
  if (!has_side && threadIdx.x < outer_depth)  // sums_of_b are sums
#pragma unroll
    for (int stage = 0; stage < stages_of_a; ++stage)
      places_of_a[stage * a_stage + side_at + threadIdx.x] = 1;
  const auto copy_a = [&](int it) {
    if (it < depth) {
      float* const stage = places_of_a + it % stages_of_a * a_stage;
      float* to = stage + warp * a_row + 4 * lane;
#pragma unroll
      for (int n = 0; n < outer_depth / 8; ++n) copy_async_16(to + 8 * n * a_row, from_a + 8 * n * p.a_ld);
      from_a += outer_depth * p.a_ld;
      if (has_side && lane < 4) copy_async_4(stage + side_at + warp + 8 * lane, from_side, true);
      from_side += outer_depth * p.a_ld;
    }
    copy_commit();
  };
  const auto read_a = [&](int it, uint32_t(&a)[4][4]) {
    const float* at = places_of_a + it % stages_of_a * a_stage + t * a_row + warp * 16 + 2 * g;
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      const float2 low = *reinterpret_cast<const float2*>(at + 8 * s * a_row),
                   high = *reinterpret_cast<const float2*>(at + (8 * s + 4) * a_row);
      a[s][0] = to_tf32(low.x), a[s][1] = to_tf32(low.y), a[s][2] = to_tf32(high.x),
      a[s][3] = to_tf32(high.y);
      sums[0] += low.x + high.x, sums[1] += low.y + high.y;
    }
  };
  // Of B a thread takes 4 rows of 4 columns, twice; eight lanes side by side read 128 bytes of a row. They
  // write their columns in different order, so that no bank is met twice.
  float4 next_b[2][4];
  const int rows = warp % 2 * 4 + lane / 8, column = warp / 2 * 64 + lane % 8 * 4, order = lane / 2 % 4;
  const float* from_b = p.b + (k_begin + 4 * rows) * p.b_ld + j0 + column;
  const auto load_b = [&](int half) {
#pragma unroll
    for (int r = 0; r < 4; ++r)
      next_b[half][r] = __ldg(reinterpret_cast<const float4*>(from_b + r * p.b_ld + 32 * half));
    if (half == 1) from_b += outer_depth * p.b_ld;
  };
  const auto store_b = [&](int it, uint32_t place, int half) {
    uint32_t x[4][4];  // [e][r]: column e ^ order
    const float4 beside =
        *reinterpret_cast<const float4*>(places_of_a + it % stages_of_a * a_stage + side_at + 4 * rows);
    const float factor[4] = {beside.x, beside.y, beside.z, beside.w};
    if (half == 0) sum_of_side += beside.x + beside.y + beside.z + beside.w;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const float4 v = next_b[half][r];
      sums_of_b[half][0] += factor[r] * v.x, sums_of_b[half][1] += factor[r] * v.y,
          sums_of_b[half][2] += factor[r] * v.z, sums_of_b[half][3] += factor[r] * v.w;
      const bool odd = order & 1, far = order & 2;
      const float y[4] = {odd ? v.y : v.x, odd ? v.x : v.y, odd ? v.w : v.z, odd ? v.z : v.w};
#pragma unroll
      for (int e = 0; e < 4; ++e) x[e][r] = to_tf32(far ? y[e ^ 2] : y[e]);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int n = column + 32 * half + (e ^ order);
      store_shared(place + n * 128 + ((rows ^ (n & 7)) << 4), x[e]);
    }
  };
  // Tiles of B in time to the L2 cache; blocks that share them share the work.
  const int tiles_beside = p.M / wgmma_rows, line = static_cast<int>(threadIdx.x) / 8;
  const bool fetches = line % tiles_beside == tile_row;
  const float* line_of_b = p.b + (k_begin + line) * p.b_ld + j0 + static_cast<int>(threadIdx.x) % 8 * 32;
  const auto prefetch_b = [&](int it) {
    if (fetches && it < depth) prefetch_to_l2(line_of_b + static_cast<int64_t>(it) * outer_depth * p.b_ld);
  };
  const auto publish = [] {
    fence_for_async();
    __syncthreads();
  };
  // Rows of 128 bytes, eight of them 1024 bytes apart, swizzled.
  const auto descriptor = [](uint32_t place) {
    return static_cast<uint64_t>(place >> 4) | uint64_t{1} << 16 | uint64_t{64} << 32 | uint64_t{1} << 62;
  };

  uint32_t a[2][4][4];
  copy_a(0), copy_a(1), copy_a(2);
  load_b(0), load_b(1);
  for (int n = 1; n < ahead_of_b; ++n) prefetch_b(n);
  copy_wait<1>();
  __syncthreads();
  store_b(0, places, 0), store_b(0, places, 1);
  if (depth > 1) load_b(0), load_b(1);
  publish();
  read_a(0, a[0]);
  __syncthreads();
  uint32_t place = places, after = places + place_bytes;
  const uint32_t last = places + (places_of_b - 1) * place_bytes;
  const auto step = [&](int it, uint32_t(&now)[4][4], uint32_t(&next)[4][4]) {
    wgmma_pin(d), wgmma_pin(now);
    wgmma_fence();
    const uint64_t b = descriptor(place);
#pragma unroll
    for (int s = 0; s < 4; ++s) wgmma_tf32<256>(d, now[s], b + 2 * s, true);
    wgmma_commit();
    prefetch_b(it + ahead_of_b);
    copy_a(it + 3);   // where tile `it` lay
    wgmma_wait<1>();  // the products before these
    wgmma_pin(next);
    if (it + 1 < depth) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        store_b(it + 1, after, half);
        if (it + 2 < depth) load_b(half);
      }
      read_a(it + 1, next);
    }
    copy_wait<1>();  // the tile after the next
    publish();
    place = after, after = after == last ? places : after + place_bytes;
  };
  int it = 0;
#pragma unroll 1
  for (; it + 1 < depth; it += 2) step(it, a[0], a[1]), step(it + 1, a[1], a[0]);
  if (it < depth) step(it, a[0], a[1]);
  wgmma_wait<0>();
  wgmma_pin(d), wgmma_pin(a[0]), wgmma_pin(a[1]);

  const int i = i0 + warp * 16 + 2 * g;  // and i + 1: row g + 8 of the fragments
  if (p.turned) {
    float* out = p.products + (static_cast<int64_t>(piece) * p.N + j0 + 2 * t) * p.M + i;
#pragma unroll
    for (int n = 0; n < 32; ++n, out += 8 * p.M) {
      *reinterpret_cast<float2*>(out) = make_float2(d[4 * n], d[4 * n + 2]);
      *reinterpret_cast<float2*>(out + p.M) = make_float2(d[4 * n + 1], d[4 * n + 3]);
    }
  } else {
    float* out = p.products + (static_cast<int64_t>(piece) * p.M + i) * p.N + j0 + 2 * t;
#pragma unroll
    for (int n = 0; n < 32; ++n) {
      *reinterpret_cast<float2*>(out + 8 * n) = make_float2(d[4 * n], d[4 * n + 1]);
      *reinterpret_cast<float2*>(out + p.N + 8 * n) = make_float2(d[4 * n + 2], d[4 * n + 3]);
    }
  }
  if (p.turned ? sums_wanted : has_side) {  // lanes 8 apart and two warps have the same columns
    float* const halves = dynamic_shared<float>();
    __syncthreads();  // products that read B's tiles here are over
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float sum = sums_of_b[half][e];
        sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 8);
        sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 16);
        if (lane < 8) halves[warp % 2 * wgmma_columns + column + 32 * half + e] = sum;
      }
    sum_of_side += __shfl_xor_sync(0xFFFFFFFFu, sum_of_side, 8);
    sum_of_side += __shfl_xor_sync(0xFFFFFFFFu, sum_of_side, 16);
    if (warp < 2 && lane == 0) halves[2 * wgmma_columns + warp] = sum_of_side;
    __syncthreads();
    const int j = static_cast<int>(threadIdx.x);
    float* const to = p.turned ? p.sums + static_cast<int64_t>(piece) * p.N
                               : p.products + (static_cast<int64_t>(piece) * p.M + side) * p.N;
    to[j0 + j] = halves[j] + halves[wgmma_columns + j];
    if (j == 0 && sums_wanted && !p.turned)
      p.sums[static_cast<int64_t>(piece) * p.M + side] =
          halves[2 * wgmma_columns] + halves[2 * wgmma_columns + 1];
  }
  if (!sums_wanted || p.turned) return;
#pragma unroll
  for (int e = 0; e < 2; ++e) {
#pragma unroll
    for (int lanes = 1; lanes < 4; lanes *= 2) sums[e] += __shfl_xor_sync(0xFFFFFFFFu, sums[e], lanes);
    if (t == 0) p.sums[static_cast<int64_t>(piece) * p.M + i + e] = sums[e];
  }
#endif
}

}  // namespace

bool wgmma_exists(const Context& ctx) {
#if defined(EIGENTRACE_EMULATE)
  static_cast<void>(ctx);
  return std::getenv("EIGENTRACE_EMULATE_WGMMA") != nullptr;
#elif defined(EIGENTRACE_WGMMA)
  // Code for 90a runs where the device is 9.0 alone; elsewhere there is none, or what another architecture
  // left.
  static const bool exists = [&] {
    int major = 0, minor = 0;
    ET_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ctx.device().index));
    ET_CUDA(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ctx.device().index));
    if (major != 9 || minor != 0) return false;
    cudaFuncAttributes attributes;
    const bool loaded = cudaFuncGetAttributes(&attributes, outer_wgmma_kernel) == cudaSuccess;
    cudaGetLastError();
    return loaded && attributes.ptxVersion == 90;
  }();
  return exists;
#else
  return static_cast<void>(ctx), false;
#endif
}

void outer_wgmma(Context& ctx, const OuterProduct& p) {
  const dim3 grid(static_cast<unsigned>(p.M / wgmma_rows * (p.N / wgmma_columns)),
                  static_cast<unsigned>(p.pieces));
  launch(ctx, outer_wgmma_kernel, grid, wgmma_threads, wgmma_shared_bytes, p);
}

}  // namespace eigentrace
#endif
