#pragma once
// C(i, j) = Σ_k A(k, i) B(k, j) in float32 on tensor cores (TF32 operands, float32 sums), and Σ_k A(k, i) on
// the side: weight and bias gradients, a few hundred rows and columns and a sum over tens of thousands of
// tokens, with k what lies far apart in both operands.
//
// A block of four warps makes 128 × 128 from tiles 32 deep, two of which are on their way (96 KB: two blocks
// a processor on sm_90). Each warp makes 64 × 64, half of tc_kernel's reads of shared memory for a product. A
// warp's rows and columns may come in any order: a lane's 16 bytes of a row of A are rows g and g + 8 of two
// fragments, its 16 bytes of B the same column of four. So eight 16-byte reads feed 32 products, and results
// lie 16 bytes side by side. Pieces of a row change places so that no bank is met twice.
//
// 51200 tokens, 640 × 512: 33.6 GFLOP, 0.14 ms at mma.sync's 237 TFLOP/s; 131 + 105 MB, 0.06 ms at 4.2 TB/s.
// 51200 tokens, 128 × 512: 6.7 GFLOP, 0.03 ms; 131 MB, 0.03 ms.
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/gemm_outer_wgmma.h"
#include "tensor/gemm_tensor_cores.cuh"

namespace eigentrace {

constexpr int outer_tile = 128, outer_stages = 3, outer_threads = 128;
constexpr int outer_tile_floats = outer_depth * outer_tile;
constexpr size_t outer_shared_bytes = size_t{outer_stages} * 2 * outer_tile_floats * sizeof(float);

/// Where 16-byte piece `piece` of row k of a tile lies, in floats.
__device__ __forceinline__ int outer_address(int k, int piece) {
  return k * outer_tile + (piece ^ (k & 7)) * 4;
}

/// What a thread copies of each tile of an operand: of one row every fourth piece, so that all addresses but
/// two are constants apart. Eight lanes side by side have rows four apart, which meet no bank twice.
struct OuterCopy {
  static constexpr int copies = outer_tile / 16;
  const float* from;
  int64_t step;
  int row, left, to[2];  // left: columns from the first on; to: of even copies and of odd ones

  __device__ OuterCopy(const float* data, int64_t ld, int k0, int column0, int columns) {
    const int group = static_cast<int>(threadIdx.x) / 4, piece = static_cast<int>(threadIdx.x) % 4;
    row = group / 8 * 8 + group % 8 / 2 + group % 2 * 4;
    from = data + (k0 + row) * ld + column0 + 4 * piece;
    step = outer_depth * ld;
    left = columns - column0 - 4 * piece;
    to[0] = outer_address(row, piece), to[1] = outer_address(row, piece + 4) - 16;
  }
  /// The next tile, of which `rows` rows exist; the rest becomes zero. `any`: an address that may be named.
  __device__ void careful(float* tile, const float* any, int rows) {
#pragma unroll
    for (int n = 0; n < copies; ++n) {
      const int valid = row < rows ? left - 16 * n : 0;
      const int bytes = valid >= 4 ? 16 : valid > 0 ? 4 * valid : 0;
      copy_async_part(tile + to[n % 2] + 16 * n, bytes > 0 ? from + 16 * n : any, bytes);
    }
    from += step;
  }
  /// A quarter of the next tile, all of which exists; in order.
  __device__ void quarter(float* tile, int which) {
#pragma unroll
    for (int n = which * 2; n < which * 2 + 2; ++n) copy_async_16(tile + to[n % 2] + 16 * n, from + 16 * n);
    if (which == 3) from += step;
  }
};

/// A lane's 16 bytes of row t and, `further` on, of row t + 4.
__device__ __forceinline__ void outer_read(float (&to)[2][4], const float* at, int further) {
#pragma unroll
  for (int low = 0; low < 2; ++low) {
    const float4 v = *reinterpret_cast<const float4*>(low == 0 ? at : at + further);
    to[low][0] = v.x, to[low][1] = v.y, to[low][2] = v.z, to[low][3] = v.w;
  }
}

/// Grid: tiles (columns first), pieces.
inline __global__ void __launch_bounds__(outer_threads, 2)
    outer_kernel(const __grid_constant__ OuterProduct p) {
  float* shared = dynamic_shared<float>();
  float* const last_stage = shared + 2 * (outer_stages - 1) * outer_tile_floats;
  const auto after = [&](float* stage) {
    return stage == last_stage ? shared : stage + 2 * outer_tile_floats;
  };
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int g = lane / 4, t = lane % 4, warp_row = warp / 2, warp_column = warp % 2;
  const int across = (p.N + outer_tile - 1) / outer_tile;
  const int tile_column = static_cast<int>(blockIdx.x) % across;
  const int i0 = static_cast<int>(blockIdx.x) / across * outer_tile, j0 = tile_column * outer_tile;
  const int piece = static_cast<int>(blockIdx.y), k_begin = piece * p.length;
  const int k_count = p.K - k_begin < p.length ? p.K - k_begin : p.length;
  const int depth = (k_count + outer_depth - 1) / outer_depth;
  OuterCopy copy_a(p.a, p.a_ld, k_begin, i0, p.M), copy_b(p.b, p.b_ld, k_begin, j0, p.N);
  const auto careful = [&](int it, float* stage) {
    if (it < depth) {
      copy_a.careful(stage, p.a, k_count - it * outer_depth);
      copy_b.careful(stage + outer_tile_floats, p.b, k_count - it * outer_depth);
    }
    copy_commit();
  };
  // Tiles all of which exist are copied between the products, the others before them.
  const int whole = i0 + outer_tile <= p.M && j0 + outer_tile <= p.N ? k_count / outer_depth : 0;
  const bool sums_wanted = p.sums && tile_column == 0;
  float sums[8] = {};
  float d[4][8][4] = {};
  float *stage = shared, *next = after(shared);
  careful(0, stage), careful(1, next);
  // Lane group g takes this one of eight pieces side by side, which with rows t meets no bank twice.
  const int taken = g / 2 + g % 2 * 4, at = outer_address(t, taken),
            further = outer_address(t + 4, taken) - at;
  const int a_at = at + warp_row * 64, b_at = at + warp_column * 64 + outer_tile_floats;
#pragma unroll 1
  for (int it = 0; it < depth; ++it) {
    copy_wait<1>();
    __syncthreads();
    float* const free = after(next);  // its last reader has passed the barrier
    const bool quick = it + 2 < whole;
    if (!quick) careful(it + 2, free);
    float a[2][2][4], b[2][2][4];  // the first and the second 32 of the warp's 64
    const auto read = [&](int k) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        outer_read(a[half], stage + a_at + k * outer_tile + 32 * half, further);
        outer_read(b[half], stage + b_at + k * outer_tile + 32 * half, further);
      }
    };
    read(0);
#pragma unroll
    for (int k = 0; k < outer_depth; k += 8) {
      // The two warps that share rows take turns.
      if (sums_wanted && k / 8 % 2 == warp_column)
#pragma unroll
        for (int i = 0; i < 8; ++i) sums[i] += a[i / 4][0][i % 4] + a[i / 4][1][i % 4];
      uint32_t ra[4][4], rb[8][2];
#pragma unroll
      for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) ra[m][i] = to_tf32(a[m / 2][i / 2][m % 2 * 2 + i % 2]);
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) rb[n][i] = to_tf32(b[n / 4][i][n % 4]);
      if (k + 8 < outer_depth) read(k + 8);
#pragma unroll
      for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int n = 0; n < 8; ++n) mma_tf32(d[m][n], ra[m], rb[n]);
      if (quick) copy_a.quarter(free, k / 8), copy_b.quarter(free + outer_tile_floats, k / 8);
    }
    if (quick) copy_commit();
    stage = next, next = free;
  }
  copy_wait<0>();
  float* out = p.products + static_cast<int64_t>(piece) * p.M * p.N;
  const bool wide = p.N % 4 == 0;
#pragma unroll
  for (int m = 0; m < 4; ++m)
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const int i = i0 + warp_row * 64 + m / 2 * 32 + 4 * taken + m % 2 * 2 + row;
      if (i >= p.M) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          const int j = j0 + warp_column * 64 + half * 32 + 4 * t + 16 * side;
          float* to = out + static_cast<int64_t>(i) * p.N + j;
          const auto value = [&](int e) { return d[m][4 * half + e][2 * row + side]; };
          if (!wide) {
#pragma unroll
            for (int e = 0; e < 4; ++e)
              if (j + e < p.N) to[e] = value(e);
          } else if (j < p.N) {
            *reinterpret_cast<float4*>(to) = make_float4(value(0), value(1), value(2), value(3));
          }
        }
    }
  if (!sums_wanted) return;  // the same for the whole block
  __syncthreads();
  // The four lanes of a group, then the two warps.
#pragma unroll
  for (int i = 0; i < 8; ++i) {
#pragma unroll
    for (int step = 1; step < 4; step *= 2) sums[i] += __shfl_xor_sync(0xFFFFFFFFu, sums[i], step);
    if (t == 0) shared[warp_column * outer_tile + warp_row * 64 + i / 4 * 32 + 4 * taken + i % 4] = sums[i];
  }
  __syncthreads();
  const int i = static_cast<int>(threadIdx.x);
  if (i0 + i < p.M) p.sums[static_cast<int64_t>(piece) * p.M + i0 + i] = shared[i] + shared[outer_tile + i];
}

/// Length of the pieces of K: two blocks for each of 132 processors where that leaves them `enough` rows,
/// else one. A function of the shape alone.
inline int64_t outer_length(int64_t M, int64_t N, int64_t K) {
  constexpr int64_t processors = 132, enough = 512, least = 256;
  const int64_t tiles = (M + outer_tile - 1) / outer_tile * ((N + outer_tile - 1) / outer_tile);
  const auto length = [&](int64_t blocks) {
    const int64_t pieces = std::max<int64_t>(blocks / std::max<int64_t>(tiles, 1), 1);
    return ((K + pieces - 1) / pieces + outer_depth - 1) / outer_depth * outer_depth;
  };
  const int64_t of_two = length(2 * processors);
  return std::max(of_two >= enough ? of_two : length(processors), least);
}
/// Elements of scratch for outer_long.
inline int64_t outer_scratch(int64_t M, int64_t N, int64_t K, bool sums) {
  const auto elements = [&](int64_t length) { return (K + length - 1) / length * (M * N + (sums ? M : 0)); };
  return std::max({elements(outer_length(M, N, K)),
                   wgmma_fits_but_few(M, N, K) ? elements(wgmma_length(M, N, K)) : 0,
                   wgmma_fits(N, M, K) ? elements(wgmma_length(N, M, K)) : 0});
}
/// True iff the operands lie as outer_kernel reads them.
inline bool outer_takes(const Product<float>& p) {
  const auto lies = [](const Matrix<const float>& x) {
    return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.ld % 4 == 0;
  };
  return p.a.transposed && !p.b.transposed && lies(p.a) && lies(p.b);
}
/// cuda_gemm_long with TF32 operands; outer_takes(product). K, M, N > 0.
inline void outer_long(Context& ctx, const Product<float>& product, float* sums, int64_t sums_stride,
                       float* scratch) {
  const auto whole = [](int64_t n) { return static_cast<int>(n); };
  const int64_t M = product.M, N = product.N, K = product.K;
  const bool exists = wgmma_exists(ctx), by_wgmma = exists && wgmma_fits_but_few(M, N, K),
             turned = exists && !by_wgmma && wgmma_fits(N, M, K);  // as (Bᵀ A)ᵀ
  const int64_t length = by_wgmma ? wgmma_length(M, N, K)
                         : turned ? wgmma_length(N, M, K)
                                  : outer_length(M, N, K);
  const int64_t pieces = (K + length - 1) / length;
  float* partial_sums = scratch + pieces * M * N;
  const Matrix<const float>&a = turned ? product.b : product.a, &b = turned ? product.a : product.b;
  const OuterProduct p{
      a.data,   b.data,        a.ld,          b.ld,    whole(turned ? N : M),         whole(turned ? M : N),
      whole(K), whole(length), whole(pieces), scratch, sums ? partial_sums : nullptr, turned};
  const dim3 grid(blocks_for(M, outer_tile) * blocks_for(N, outer_tile), static_cast<unsigned>(pieces));
  if (by_wgmma || turned)
    outer_wgmma(ctx, p);
  else
    launch(ctx, outer_kernel, grid, outer_threads, outer_shared_bytes, p);
  sum_pieces(ctx, {scratch, partial_sums, p.pieces, M, N, product.c, sums, sums_stride, false});
}

}  // namespace eigentrace
#endif
