#pragma once
// C = alpha A B + beta C + bias in float32 on tensor cores (TF32 parts, float32 sums), where a library call
// does not do: three products of split operands, rows whose width is no multiple of four, sums over columns
// on the side, operands made from others as they are read.
//
// A block of 256 threads makes 128 × 128 of C from tiles 32 deep, three of which are on their way; each warp
// makes 64 × 32. A tile lies in shared memory as in global memory, 128 rows of 32 where K is dense, else 32
// rows of 128; its 16-byte pieces change places within a row so that neither copies nor fragments meet a bank
// twice. 96 KB: two blocks a processor on sm_90, one on sm_86.
//
// Bytes: each of A, B and C once (tiles of one row of C run side by side and find A in L2). Projection of
// 32768 rows from 128 to 384: 67 MB, 16 µs at 4.2 TB/s; 3.2 GFLOP, 14 µs at mma.sync's 230 TFLOP/s.
#ifdef EIGENTRACE_WITH_CUDA
#include <algorithm>

#include "tensor/cuda_blas.h"
#include "tensor/launch.h"
#include "tensor/mma.h"
#include "tensor/vec.h"

namespace eigentrace {

constexpr int tc_tile = 128, tc_depth = 32, tc_stages = 3, tc_threads = 256;
constexpr int tc_tile_floats = tc_depth * tc_tile;
constexpr size_t tc_shared_bytes = size_t{tc_stages} * 2 * tc_tile_floats * sizeof(float);

/// Element (i, k) of A [M,K], or (k, i) of B: data[i·ld + k] if K is dense, else data[k·ld + i].
struct TcOperand {
  const float* data;
  int64_t ld, step;  ///< step: from one product of a batch to the next
  bool aligned;      ///< rows start at multiples of 16 bytes
};

struct TcProduct {
  TcOperand a, b;
  int M, N, K;
  int length;  ///< of a piece of K, a multiple of tc_depth
  int pieces;
};

/// Leaves operands as they are.
struct AsRead {
  static constexpr bool changes = false;
  __device__ void operator()(float (&)[4], int, int) const {}
};

/// A tile in shared memory. In units of the dense and the other axis: along, across. A thread copies 16-byte
/// pieces tid, tid + 256, …: the same `along`, `stride_across` apart.
template <bool KDense>
struct TcTile {
  static constexpr int per_row = (KDense ? tc_depth : tc_tile) / 4, stride_across = tc_threads / per_row;
  static constexpr int copies = tc_tile * tc_depth / 4 / tc_threads;

  __device__ static int my_along() { return static_cast<int>(threadIdx.x) % per_row * 4; }
  __device__ static int my_across(int n) {
    return static_cast<int>(threadIdx.x) / per_row + n * stride_across;
  }
  __device__ static int address(int along, int across) {
    if constexpr (KDense) return across * tc_depth + (((along / 4) ^ (across & 7)) * 4) + along % 4;
    return across * tc_tile + (((along / 4) ^ ((across & 3) * 2)) * 4) + along % 4;
  }
  /// Where this thread's first piece is read.
  __device__ static const float* first(const TcOperand& x, const float* data, int i0, int k0) {
    return data + static_cast<int64_t>((KDense ? i0 : k0) + my_across(0)) * x.ld + (KDense ? k0 : i0) +
           my_along();
  }
  /// Starts copying the tile whose first piece is at `from`; `rows_left` rows of i and `depth_left` of k
  /// exist from the tile's corner on, the rest becomes zero.
  __device__ static void load(float* tile, const TcOperand& x, const float* from, int rows_left,
                              int depth_left) {
    const int left = (KDense ? depth_left : rows_left) - my_along(),
              across_left = KDense ? rows_left : depth_left;
    const int valid = left >= 4 ? 4 : left > 0 ? left : 0;
#pragma unroll
    for (int n = 0; n < copies; ++n) {
      const int across = my_across(n), count = across < across_left ? valid : 0;
      const float* source = count > 0 ? from + n * stride_across * x.ld : x.data;
      float* to = tile + address(my_along(), across);
      if (x.aligned) {
        copy_async_part(to, source, 4 * count);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) copy_async_4(to + i, i < count ? source + i : x.data, i < count);
      }
    }
  }
  /// change(values, row, first column) on the pieces that this thread copied; rows and columns as in memory.
  template <class Change>
  __device__ static void transform(float* tile, const Change& change, int i0, int k0) {
#pragma unroll
    for (int n = 0; n < copies; ++n) {
      auto* at = reinterpret_cast<float4*>(tile + address(my_along(), my_across(n)));
      const float4 v = *at;
      float values[4] = {v.x, v.y, v.z, v.w};
      change(values, (KDense ? i0 : k0) + my_across(n), (KDense ? k0 : i0) + my_along());
      *at = make_float4(values[0], values[1], values[2], values[3]);
    }
  }
  /// a[0…3] of rows i…i+15 of A, depth k…k+7; or, of B, b[0], b[1] of columns i…i+7, then those of i+8…i+15.
  /// i = base + offset, base a multiple of 32, offset of 16.
  template <bool OfB>
  __device__ static void fragment(uint32_t (&r)[4], const float* tile, int base, int offset, int k) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    if constexpr (KDense) {
      const int row = base + offset + lane % 8 + (OfB ? lane / 16 : lane / 8 % 2) * 8;
      const int piece = k / 4 + (OfB ? lane / 8 % 2 : lane / 16);
      ldmatrix_x4(r, tile + row * tc_depth + ((piece ^ (lane % 8)) * 4));
    } else {
      const int t = lane % 4,
                g = lane / 4;  // the piece of i + g and that of i + g + 8, as `address` has them
      const float* at = tile + (k + t) * tc_tile + base + g;
      const int first = (offset / 4 ^ t * 2) * 4, second = ((offset / 4 + 2) ^ t * 2) * 4;
      r[0] = __float_as_uint(at[first]), r[3] = __float_as_uint(at[4 * tc_tile + second]);
      r[OfB ? 2 : 1] = __float_as_uint(at[second]), r[OfB ? 1 : 2] = __float_as_uint(at[4 * tc_tile + first]);
    }
  }
};

/// x = high + low, both TF32; Parts = 1: high alone.
template <int Parts>
__device__ __forceinline__ void tc_split(uint32_t x, uint32_t& high, uint32_t& low) {
  high = to_tf32(__uint_as_float(x));
  if constexpr (Parts == 3) low = to_tf32(__uint_as_float(x) - __uint_as_float(high));
}

/// Products of one tile: d[m][n] += rows 16 m…, columns 8 n… of this warp.
template <int Parts, bool AKDense, bool BKDense>
__device__ __forceinline__ void tc_multiply(float (&d)[4][4][4], const float* a_tile, const float* b_tile,
                                            int row, int column) {
#pragma unroll
  for (int k = 0; k < tc_depth; k += 8) {
    uint32_t b_high[4][2], b_low[4][2];
#pragma unroll
    for (int n = 0; n < 4; n += 2) {
      uint32_t r[4];
      TcTile<BKDense>::template fragment<true>(r, b_tile, column, 8 * n, k);
#pragma unroll
      for (int i = 0; i < 4; ++i) tc_split<Parts>(r[i], b_high[n + i / 2][i % 2], b_low[n + i / 2][i % 2]);
    }
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      uint32_t r[4], a_high[4], a_low[4];
      TcTile<AKDense>::template fragment<false>(r, a_tile, row, 16 * m, k);
#pragma unroll
      for (int i = 0; i < 4; ++i) tc_split<Parts>(r[i], a_high[i], a_low[i]);
      if constexpr (Parts == 3) {  // the small products first
#pragma unroll
        for (int n = 0; n < 4; ++n) mma_tf32(d[m][n], a_low, b_high[n]);
#pragma unroll
        for (int n = 0; n < 4; ++n) mma_tf32(d[m][n], a_high, b_low[n]);
      }
#pragma unroll
      for (int n = 0; n < 4; ++n) mma_tf32(d[m][n], a_high, b_high[n]);
    }
  }
}

/// The results of a warp as its threads hold them: visit(i, j, value of (i, j), value of (i, j + 1)), j even.
template <class Visit>
__device__ __forceinline__ void tc_visit(const float (&d)[4][4][4], int row, int column, Visit&& visit) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int m = 0; m < 4; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int n = 0; n < 4; ++n)
        visit(row + 16 * m + 8 * half + lane / 4, column + 8 * n + lane % 4 * 2, d[m][n][2 * half],
              d[m][n][2 * half + 1]);
}

/// Grid: tiles of N, tiles of M, batch · pieces. finish(results, first row and column of the warp, p, shared
/// memory to use) ends each block. column_sums, if not null: Σ_k A(i, k) of piece p at [p·M + i].
template <int Parts, bool AKDense, bool BKDense, class Change, class Finish>
__global__ void __launch_bounds__(tc_threads, 2)
    tc_kernel(const __grid_constant__ TcProduct p, const __grid_constant__ Change change,
              const __grid_constant__ Finish finish, float* column_sums) {
  float* shared = dynamic_shared<float>();
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int row = warp / 4 * 64, column = warp % 4 * 32;
  const int i0 = static_cast<int>(blockIdx.y) * tc_tile, j0 = static_cast<int>(blockIdx.x) * tc_tile;
  const int batch = static_cast<int>(blockIdx.z) / p.pieces, piece = static_cast<int>(blockIdx.z) % p.pieces;
  const int k_begin = piece * p.length, k_count = p.K - k_begin < p.length ? p.K - k_begin : p.length;
  const int depth = (k_count + tc_depth - 1) / tc_depth;
  const float* a = TcTile<AKDense>::first(p.a, p.a.data + batch * p.a.step, i0, k_begin);
  const float* b = TcTile<BKDense>::first(p.b, p.b.data + batch * p.b.step, j0, k_begin);
  const auto a_tile = [&](int it) { return shared + it % tc_stages * (2 * tc_tile_floats); };
  const auto start = [&](int it) {
    if (it < depth) {
      const int left = k_count - it * tc_depth;
      TcTile<AKDense>::load(a_tile(it), p.a, a, p.M - i0, left);
      TcTile<BKDense>::load(a_tile(it) + tc_tile_floats, p.b, b, p.N - j0, left);
      a += tc_depth * (AKDense ? 1 : p.a.ld), b += tc_depth * (BKDense ? 1 : p.b.ld);
    }
    copy_commit();
  };
  float d[4][4][4] = {};
  float side_sum = 0;
  for (int it = 0; it < tc_stages - 1; ++it) start(it);
#pragma unroll 1
  for (int it = 0; it < depth; ++it) {
    copy_wait<tc_stages - 2>();
    if constexpr (Change::changes)
      TcTile<AKDense>::transform(a_tile(it), change, i0, k_begin + it * tc_depth);
    __syncthreads();
    start(it + tc_stages - 1);
    const float* tile = a_tile(it);
    if constexpr (!AKDense)
      if (column_sums && blockIdx.x == 0) {  // two threads a column, each half of the depth
        const int i = static_cast<int>(threadIdx.x) % tc_tile,
                  k0 = static_cast<int>(threadIdx.x) / tc_tile * 16;
#pragma unroll
        for (int k = 0; k < tc_depth / 2; ++k) side_sum += tile[TcTile<false>::address(i, k0 + k)];
      }
    tc_multiply<Parts, AKDense, BKDense>(d, tile, tile + tc_tile_floats, row, column);
  }
  copy_wait<0>();
  __syncthreads();
  if constexpr (!AKDense)
    if (column_sums && blockIdx.x == 0) {
      const int i = static_cast<int>(threadIdx.x);
      if (i >= tc_tile) shared[i - tc_tile] = side_sum;
      __syncthreads();
      if (i < tc_tile && i0 + i < p.M)
        column_sums[static_cast<int64_t>(piece) * p.M + i0 + i] = side_sum + shared[i];
      __syncthreads();
    }
  finish(d, i0 + row, j0 + column, p, shared);
}

/// C = alpha d + beta C + bias; pieces go to C + piece · piece_step.
struct TcStore {
  float* c;
  int64_t ld, step, piece_step;
  float alpha, beta;
  const float* bias;
  bool paired;                  ///< 8-byte stores are aligned
  const float* from = nullptr;  ///< what beta multiplies, from_ld apart, if not C
  int64_t from_ld = 0;
  __device__ void operator()(const float (&d)[4][4][4], int row, int column, const TcProduct& p,
                             float*) const {
    const int z = static_cast<int>(blockIdx.z);
    float* out = c + z / p.pieces * step + z % p.pieces * piece_step;
    tc_visit(d, row, column, [&](int i, int j, float x, float y) {
      if (i >= p.M || j >= p.N) return;
      float* at = out + i * ld + j;
      const bool both = j + 1 < p.N;
      x *= alpha, y *= alpha;
      const float* before = from ? from + i * from_ld + j : at;
      if (beta != 0) x += beta * before[0], y += both ? beta * before[1] : 0.0f;
      if (bias) x += bias[j], y += both ? bias[j + 1] : 0.0f;
      if (both && paired)
        *reinterpret_cast<float2*>(at) = make_float2(x, y);
      else if (at[0] = x; both)
        at[1] = y;
    });
  }
};

/// Both operands' layouts as template arguments.
template <int Parts, class Change, class Finish>
void tc_launch(Context& ctx, const TcProduct& p, bool a_k_dense, bool b_k_dense, int64_t batch,
               const Change& change, const Finish& finish, float* column_sums) {
  const dim3 grid(blocks_for(p.N, tc_tile), blocks_for(p.M, tc_tile),
                  static_cast<unsigned>(batch * p.pieces));
  const auto start = [&](auto* kernel) {
    launch(ctx, kernel, grid, tc_threads, tc_shared_bytes, p, change, finish, column_sums);
  };
  if (a_k_dense && b_k_dense)
    start(tc_kernel<Parts, true, true, Change, Finish>);
  else if (a_k_dense)
    start(tc_kernel<Parts, true, false, Change, Finish>);
  else if (b_k_dense)
    start(tc_kernel<Parts, false, true, Change, Finish>);
  else
    start(tc_kernel<Parts, false, false, Change, Finish>);
}

inline TcOperand tc_operand(const float* data, int64_t ld, int64_t step) {
  return {data, ld, step, reinterpret_cast<uintptr_t>(data) % 16 == 0 && ld % 4 == 0 && step % 4 == 0};
}
/// A product as tc_kernel takes it, K in pieces of `length`.
inline TcProduct tc_product(const Product<float>& p, int64_t length) {
  const auto whole = [](int64_t n) { return static_cast<int>(n); };
  return {tc_operand(p.a.data, p.a.ld, p.a_step),
          tc_operand(p.b.data, p.b.ld, p.b_step),
          whole(p.M),
          whole(p.N),
          whole(p.K),
          whole(length),
          whole((p.K + length - 1) / length)};
}

/// Element e of y (row-major [M,N]; y.data null: not wanted) is the sum of products[p·M·N + e] over p; after
/// those, sums from partial_sums[p·M + i].
template <class T>
struct Pieces {
  const T *products, *partial_sums;
  int count;
  int64_t M, N;
  Matrix<T> y;
  T* sums;
  int64_t sums_stride;
  bool add;  ///< to what y and sums hold
};
/// Four threads a pack of Width elements, each a quarter of the pieces in order, then the quarters in order.
/// Width divides N and, if sums are wanted, M.
template <class T, int Width>
__global__ void __launch_bounds__(256) sum_pieces_kernel(Pieces<T> p) {
  __shared__ T quarters[4][Width][64];
  const int64_t size = p.M * p.N,
                element = (static_cast<int64_t>(blockIdx.x) * 64 + threadIdx.x % 64) * Width;
  const int quarter = static_cast<int>(threadIdx.x / 64), each = (p.count + 3) / 4;
  const int begin = quarter * each, end = begin + each < p.count ? begin + each : p.count;
  const bool exists = element < size + (p.sums ? p.M : 0), of_sums = element >= size;
  Vec<T, Width> sum;
  if (exists) {
    const int64_t step = of_sums ? p.M : size;
    const T* at = (of_sums ? p.partial_sums + (element - size) : p.products + element) + begin * step;
#pragma unroll 8
    for (int i = begin; i < end; ++i, at += step) {
      const Vec<T, Width> part = load_vec<Width>(at);
#pragma unroll
      for (int e = 0; e < Width; ++e) sum.x[e] += part.x[e];
    }
  }
#pragma unroll
  for (int e = 0; e < Width; ++e) quarters[quarter][e][threadIdx.x % 64] = sum.x[e];
  __syncthreads();
  if (quarter > 0 || !exists || (!of_sums && !p.y.data)) return;
  const int64_t i = of_sums ? 0 : element / p.N, j = of_sums ? 0 : element % p.N;
#pragma unroll
  for (int e = 0; e < Width; ++e) {
    for (int q = 1; q < 4; ++q) sum.x[e] += quarters[q][e][threadIdx.x];
    T& y = of_sums ? p.sums[(element - size + e) * p.sums_stride]
                   : p.y.data[p.y.transposed ? (j + e) * p.y.ld + i : i * p.y.ld + j + e];
    y = p.add ? y + sum.x[e] : sum.x[e];
  }
}
inline void sum_pieces(Context& ctx, const Pieces<float>& p) {
  const int64_t elements = p.M * p.N + (p.sums ? p.M : 0);
  if (p.N % 4 == 0 && (!p.sums || p.M % 4 == 0))
    launch(ctx, sum_pieces_kernel<float, 4>, blocks_for(elements, 256), 256, 0, p);
  else
    launch(ctx, sum_pieces_kernel<float, 1>, blocks_for(elements, 64), 256, 0, p);
}

inline int64_t tc_round_up(int64_t n) { return (n + tc_depth - 1) / tc_depth * tc_depth; }
/// Length of the pieces into which a long K is cut: two blocks for each of 132 processors, if the pieces are
/// not too short for that. A function of the shape alone.
inline int64_t tc_length(int64_t M, int64_t N, int64_t K) {
  constexpr int64_t slots = 2 * 132, least = 256;
  const int64_t tiles = (M + tc_tile - 1) / tc_tile * ((N + tc_tile - 1) / tc_tile);
  const int64_t wanted = std::max<int64_t>(slots / std::max<int64_t>(tiles, 1), 1);
  return std::max(tc_round_up((K + wanted - 1) / wanted), least);
}
/// Elements of scratch for tc_long.
inline int64_t tc_long_scratch(int64_t M, int64_t N, int64_t K, bool sums) {
  const int64_t length = tc_length(M, N, K);
  return (K + length - 1) / length * (M * N + (sums ? M : 0));
}
/// cuda_gemm_long on our kernel: K in pieces side by side, then their sum (added to C and `sums` if `add`).
/// `change` makes A of what is read. K, M, N > 0.
template <int Parts, class Change>
void tc_long(Context& ctx, const Product<float>& product, const Change& change, float* sums,
             int64_t sums_stride, bool add, float* scratch) {
  const TcProduct p = tc_product(product, tc_length(product.M, product.N, product.K));
  const int64_t size = product.M * product.N;
  float* partial_sums = scratch + p.pieces * size;
  const TcStore store{scratch, product.N, 0, size, 1, 0, nullptr, product.N % 2 == 0};
  tc_launch<Parts>(ctx, p, !product.a.transposed, product.b.transposed, 1, change, store,
                   sums ? partial_sums : nullptr);
  sum_pieces(ctx, Pieces<float>{scratch, partial_sums, p.pieces, product.M, product.N, product.c, sums,
                                sums_stride, add});
}

}  // namespace eigentrace
#endif
