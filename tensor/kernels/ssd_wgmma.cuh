#pragma once
// What the recurrence's kernels by wgmma share: products of TF32 tiles in shared memory.
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/kernels/ssd_tiles.cuh"
#include "tensor/wgmma.h"

namespace eigentrace::kernels {
namespace {

[[maybe_unused]] constexpr int width = 128, group_threads = 128;
/// Tiles of 64 rows × 128 floats in parts of 32 columns, each 128 bytes a row, swizzled by wgmma's rule.
[[maybe_unused]] constexpr int part_bytes = ssd_chunk * 128, tile_bytes = 4 * part_bytes,
                               pairs_bytes = 2 * part_bytes;

/// Of a block of ssd_gradients_wgmma_kernel: what is there all the time, and what comes where R was.
struct Small {
  float2 sum[ssd_chunk];
  float weight[ssd_chunk], fade[ssd_chunk], to_end[ssd_chunk], row[ssd_chunk], deta[ssd_chunk];
  float from_state[4][ssd_chunk], diagonal[ssd_chunk];
};
struct Sums {
  double passed[4], skipped[4];
  float ends[ssd_chunk], starts[4][ssd_chunk], to_state[4][ssd_chunk], from_state[ssd_chunk];
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
/// Right or left operand: 64 rows of a tile, its columns 8 step … 8 step + 7.
__device__ __forceinline__ uint64_t eight_of(uint32_t tile, int step) {
  const uint32_t address = tile + static_cast<uint32_t>(step / 4 * part_bytes + step % 4 * 32);
  return uint64_t{1} << 16 | uint64_t{64} << 32 | uint64_t{1} << 62 | static_cast<uint64_t>(address >> 4);
}
/// d[i] = A_i Bᵀ over 128 columns of tiles of 64 rows.
template <int n>
__device__ __forceinline__ void start_products(float (&d)[n][32], const uint32_t (&a)[n], uint32_t b) {
#pragma unroll
  for (int i = 0; i < n; ++i) wgmma_pin(d[i]);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < width / 8; ++step)
#pragma unroll
    for (int i = 0; i < n; ++i) wgmma_tf32<64>(d[i], eight_of(a[i], step), eight_of(b, step), step > 0);
  wgmma_commit();
}
template <int n>
__device__ __forceinline__ void finish_products(float (&d)[n][32]) {
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < n; ++i) wgmma_pin(d[i]);
}
/// d[i] (+)= A_i B over 64 of k; load(a, step): both halves' fragments of eight k; B's from `first` eights
/// on.
template <class Load>
__device__ __forceinline__ void multiply_turned(float (&d)[2][32], const Load& load, uint32_t b, int first,
                                                bool adds) {
  uint32_t a[2][4][4];  // two eights, both halves of rows
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    load(a[i % 2][0], a[i % 2][1], 2 * i), load(a[i % 2][2], a[i % 2][3], 2 * i + 1);
    wgmma_pin(a[i % 2]);
    if (i == 0) wgmma_pin(d[0]), wgmma_pin(d[1]);
    wgmma_fence();
#pragma unroll
    for (int e = 0; e < 4; ++e)
      wgmma_tf32<64>(d[e % 2], a[i % 2][e], eight_of(b, first + 2 * i + e / 2), adds || i > 0 || e > 1);
    wgmma_commit();
    wgmma_wait<1>();
    if (i > 0) wgmma_pin(a[(i + 1) % 2]);
  }
  wgmma_wait<0>();
  wgmma_pin(a[1]), wgmma_pin(d[0]), wgmma_pin(d[1]);
}
/// Sums over the lanes of a column; lane 4 g + t is left with those of x[2 g] and x[2 g + 1] in x[0] and
/// x[1].
template <class T, int half = 8>
__device__ __forceinline__ void share_sums(T (&x)[16], int lane) {
  const bool upper = lane & 2 * half;
#pragma unroll
  for (int i = 0; i < half; ++i) {
    const T sent = upper ? x[i] : x[i + half], kept = upper ? x[i + half] : x[i];
    x[i] = kept + __shfl_xor_sync(0xFFFFFFFFu, sent, 2 * half);
  }
  if constexpr (half > 2) share_sums<T, half / 2>(x, lane);
}
__device__ __forceinline__ float4 four_at(const unsigned char* p) {
  return *reinterpret_cast<const float4*>(p);
}
#endif

}  // namespace
}  // namespace eigentrace::kernels
#endif
