// Softmax attention on CUDA without tensor cores: float32 with true float32 products, float64, and the head
// sizes that the tensor-core kernels do not take. Equations: softmax_attention.cu.
//
// A block of 256 threads holds a 64 × 64 tile of s, 4 × 4 a thread, and 64 rows × (64 or 128) columns of an
// output. Operands pass through shared memory 32 deep, so every N, P, T and stride is taken. The forward pass
// keeps a running maximum and sum per row. The backward pass writes one output a block: dq over tiles of
// keys; dk, dv over tiles of queries; each recomputes s (and dy·v), so nothing is summed between blocks: 3(N
// + P) + 2N products a pair instead of the least 3N + 2P, and the same bits every time. Floor in float32 (51
// TFLOP/s), CIFAR (B·H 200, T 1024, N 16, P 128): 30 GFLOP forward, 97 backward: 0.6 and 1.9 ms.
#include "tensor/kernels/softmax_attention_delta.cuh"
#include "tensor/math.h"

#ifdef EIGENTRACE_WITH_CUDA
namespace eigentrace::kernels {
namespace {

constexpr int tile = 64, depth = 32, pitch = tile + 4, threads = 256;
template <class T>
constexpr int least_blocks = sizeof(T) == 4 ? 2 : 1;

template <class T>
struct alignas(16) Four {
  T x[4];
};
template <class T>
__device__ Four<T> four(const T* p) {
  return *reinterpret_cast<const Four<T>*>(p);
}

/// Rows of one batch entry and head.
template <class T>
struct RowsOf {
  T* data;
  int64_t stride;
  __device__ RowsOf(const Heads<T>& x, int64_t b, int64_t h)
      : data(x.data + b * x.batch + h * x.head), stride(x.time) {}
};

/// to[column − column0][row − row0] of 64 rows and `depth` columns, zeros outside.
template <class T>
__device__ void stage_transposed(T* to, RowsOf<T> x, int64_t row0, int64_t rows, int64_t column0,
                                 int64_t columns) {
#pragma unroll
  for (int e = static_cast<int>(threadIdx.x); e < tile * depth; e += threads) {
    const int r = e / depth, c = e % depth;
    const bool inside = row0 + r < rows && column0 + c < columns;
    to[c * pitch + r] = inside ? x.data[(row0 + r) * x.stride + column0 + c] : T(0);
  }
}

/// to[row − row0][column − column0] of `depth` rows and `width` columns, zeros outside.
template <class T, int width>
__device__ void stage_rows(T* to, RowsOf<T> x, int64_t row0, int64_t rows, int64_t column0, int64_t columns) {
#pragma unroll
  for (int e = static_cast<int>(threadIdx.x); e < width * depth; e += threads) {
    const int r = e / width, c = e % width;
    const bool inside = row0 + r < rows && column0 + c < columns;
    to[r * width + c] = inside ? x.data[(row0 + r) * x.stride + column0 + c] : T(0);
  }
}

/// The 4 rows × 4 G columns of one thread: rows 4 ty + r, columns 64 g + 4 tx + c.
template <class T, int G>
struct Accumulator {
  T x[4][4 * G] = {};

  /// += leftᵀ right over k = 0…count − 1: left [k][pitch], right [k][right_pitch]
  __device__ void add_product(const T* left, const T* right, int right_pitch, int count) {
    const int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
#pragma unroll 4
    for (int k = 0; k < count; ++k) {
      const Four<T> a = four(left + k * pitch + 4 * ty);
#pragma unroll
      for (int g = 0; g < G; ++g) {
        const Four<T> b = four(right + k * right_pitch + 64 * g + 4 * tx);
#pragma unroll
        for (int r = 0; r < 4; ++r)
#pragma unroll
          for (int c = 0; c < 4; ++c) x[r][4 * g + c] += a.x[r] * b.x[c];
      }
    }
  }
  /// Rows row0 + … of y times `factor` per row.
  __device__ void store(RowsOf<T> y, int64_t row0, int64_t rows, int64_t column0, int64_t columns,
                        const T (&factor)[4]) const {
    const int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
      for (int i = 0; i < 4 * G; ++i) {
        const int64_t row = row0 + 4 * ty + r, column = column0 + i / 4 * 64 + 4 * tx + i % 4;
        if (row < rows && column < columns) y.data[row * y.stride + column] = x[r][i] * factor[r];
      }
  }
};

/// += rows row0 … of a times rows column0 … of b, over their `columns` columns, through shared memory.
template <class T>
__device__ void row_products(Accumulator<T, 1>& s, RowsOf<T> a, int64_t a0, RowsOf<T> b, int64_t b0,
                             int64_t rows, int64_t columns, T* left, T* right) {
  for (int64_t c = 0; c < columns; c += depth) {
    __syncthreads();
    stage_transposed(left, a, a0, rows, c, columns);
    stage_transposed(right, b, b0, rows, c, columns);
    __syncthreads();
    s.add_product(left, right, pitch, columns - c < depth ? static_cast<int>(columns - c) : depth);
  }
}

/// += leftᵀ (in shared memory, [64][pitch]) times rows row0 … row0 + 63 of x, from column column0 on.
template <class T, int G>
__device__ void add_rows(Accumulator<T, G>& out, const T* left, RowsOf<T> x, int64_t row0, int64_t rows,
                         int64_t column0, int64_t columns, T* right) {
  for (int k = 0; k < tile && row0 + k < rows; k += depth) {
    __syncthreads();
    stage_rows<T, 64 * G>(right, x, row0 + k, rows, column0, columns);
    __syncthreads();
    out.add_product(left + k * pitch, right, 64 * G, depth);
  }
}

template <class T>
struct alignas(16) Tiles {
  T left[depth * pitch], right[depth * 128], p[tile * pitch];
};
constexpr int right_least = depth * 128;
static_assert(right_least >= depth * pitch, "a transposed tile fits too");

template <class T, int G>
__global__ void __launch_bounds__(threads, least_blocks<T>) attention_kernel(AttentionOperands<T> a) {
  Tiles<T>& shared = *dynamic_shared<Tiles<T>>();
  const int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
  const int64_t items = a.size.B * a.size.H, tiles = (a.size.T + tile - 1) / tile, length = a.size.T;
  const int64_t item = blockIdx.x % items, b = item / a.size.H, h = item % a.size.H;
  const int64_t i0 = (tiles - 1 - blockIdx.x / items) * tile, p0 = int64_t{blockIdx.y} * 64 * G;
  const RowsOf<T> q(a.q, b, h), k(a.k, b, h), v(a.v, b, h), y(a.y, b, h);
  const AttentionMask mask(a.mask, item, length);
  Accumulator<T, G> out;
  T largest[4], sum[4];
#pragma unroll
  for (int r = 0; r < 4; ++r) largest[r] = -INFINITY, sum[r] = 0;
  for (int64_t j0 = 0; j0 <= i0; j0 += tile) {
    Accumulator<T, 1> s;
    row_products(s, q, i0, k, j0, length, a.size.N, shared.left, shared.right);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int64_t i = i0 + 4 * ty + r, j = j0 + 4 * tx;
      T top = largest[r], total = 0;
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        s.x[r][c] = j + c <= i ? s.x[r][c] * a.scale : T(-INFINITY);
        top = top > s.x[r][c] ? top : s.x[r][c];
      }
#pragma unroll
      for (int m = 8; m > 0; m /= 2) {
        const T other = __shfl_xor_sync(0xFFFFFFFFu, top, m, 16);
        top = top > other ? top : other;
      }
#pragma unroll
      for (int c = 0; c < 4; ++c) total += s.x[r][c] = fast_exp(s.x[r][c] - top);
#pragma unroll
      for (int m = 8; m > 0; m /= 2) total += __shfl_xor_sync(0xFFFFFFFFu, total, m, 16);
      const T fade = fast_exp(largest[r] - top);
      largest[r] = top;
      sum[r] = sum[r] * fade + total;
#pragma unroll
      for (int c = 0; c < 4 * G; ++c) out.x[r][c] *= fade;
      if (a.drops) {
        const uint32_t kept = mask.kept4(i, j);
#pragma unroll
        for (int c = 0; c < 4; ++c) s.x[r][c] = kept >> c & 1 ? s.x[r][c] * T(a.mask.keep_scale) : T(0);
      }
    }
#pragma unroll
    for (int c = 0; c < 4; ++c)
      *reinterpret_cast<Four<T>*>(shared.p + (4 * tx + c) * pitch + 4 * ty) = {s.x[0][c], s.x[1][c],
                                                                               s.x[2][c], s.x[3][c]};
    add_rows(out, shared.p, v, j0, length, p0, a.size.P, shared.right);
  }
  T inverse[4];
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    inverse[r] = T(1) / sum[r];
    const int64_t i = i0 + 4 * ty + r;
    if (tx == 0 && blockIdx.y == 0 && i < length)
      a.lse[(b * length + i) * a.size.H + h] = largest[r] + log(sum[r]);
  }
  out.store(y, i0, length, p0, a.size.P, inverse);
}

enum class Output { dq, dk, dv };

/// One tile of rows of dq, dk or dv.
template <class T, Output which, int G>
__global__ void __launch_bounds__(threads, least_blocks<T>)
    attention_backward_kernel(AttentionOperands<T> a, AttentionGradients<T> g) {
  Tiles<T>& shared = *dynamic_shared<Tiles<T>>();
  const int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
  const int64_t items = a.size.B * a.size.H, tiles = (a.size.T + tile - 1) / tile, length = a.size.T;
  const int64_t item = blockIdx.x % items, b = item / a.size.H, h = item % a.size.H;
  const int64_t turn = blockIdx.x / items;  // the longest first
  const int64_t own0 = (which == Output::dq ? tiles - 1 - turn : turn) * tile;
  const int64_t c0 = int64_t{blockIdx.y} * 64 * G, columns = which == Output::dv ? a.size.P : a.size.N;
  const RowsOf<T> q(a.q, b, h), k(a.k, b, h), v(a.v, b, h), dy(g.dy, b, h);
  const AttentionMask mask(a.mask, item, length);
  Accumulator<T, G> out;
  const int64_t begin = which == Output::dq ? 0 : own0, end = which == Output::dq ? own0 + 1 : length;
  for (int64_t other0 = begin; other0 < end; other0 += tile) {
    const int64_t i0 = which == Output::dq ? own0 : other0, j0 = which == Output::dq ? other0 : own0;
    Accumulator<T, 1> s, dp;
    row_products(s, q, i0, k, j0, length, a.size.N, shared.left, shared.right);
    if (which != Output::dv) row_products(dp, dy, i0, v, j0, length, a.size.P, shared.left, shared.right);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int64_t i = i0 + 4 * ty + r, j = j0 + 4 * tx;
      const bool inside = i < length;
      const T lse = inside ? a.lse[(b * length + i) * a.size.H + h] : T(0);
      const T own = inside && which != Output::dv ? g.delta[item * length + i] : T(0);
      const uint32_t kept = a.drops && inside ? mask.kept4(i, j) : 15u;
      const T keep = a.drops ? T(a.mask.keep_scale) : T(1);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const T p = inside && j + c <= i ? fast_exp(s.x[r][c] * a.scale - lse) : T(0);
        const T m = kept >> c & 1 ? keep : T(0);
        s.x[r][c] = which == Output::dv ? p * m : a.scale * p * (m * dp.x[r][c] - own);
      }
    }
    __syncthreads();  // the last tile's p has been read
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      if (which == Output::dq)
        *reinterpret_cast<Four<T>*>(shared.p + (4 * tx + r) * pitch + 4 * ty) = {s.x[0][r], s.x[1][r],
                                                                                 s.x[2][r], s.x[3][r]};
      else
        *reinterpret_cast<Four<T>*>(shared.p + (4 * ty + r) * pitch + 4 * tx) = {s.x[r][0], s.x[r][1],
                                                                                 s.x[r][2], s.x[r][3]};
    }
    add_rows(out, shared.p,
             which == Output::dq   ? k
             : which == Output::dk ? q
                                   : dy,
             other0, length, c0, columns, shared.right);
  }
  const RowsOf<T> to(which == Output::dq ? g.dq : which == Output::dk ? g.dk : g.dv, b, h);
  const T one[4] = {1, 1, 1, 1};
  out.store(to, own0, length, c0, columns, one);
}

/// Columns an output block takes: 64 or 128.
template <class Body>
void with_groups(int64_t columns, Body&& body) {
  if (columns <= 64)
    body.template operator()<1>();
  else
    body.template operator()<2>();
}

template <class T>
unsigned blocks_of(const AttentionOperands<T>& a) {
  return static_cast<unsigned>(a.size.B * a.size.H * ((a.size.T + tile - 1) / tile));
}

}  // namespace

template <class T>
void attention_scalar(const Context& ctx, const AttentionOperands<T>& a) {
  with_groups(a.size.P, [&]<int G>() {
    launch(ctx, attention_kernel<T, G>, dim3(blocks_of(a), blocks_for(a.size.P, 64 * G)), threads,
           sizeof(Tiles<T>), a);
  });
}

template <class T>
void attention_delta(const Context& ctx, const AttentionOperands<T>& a, const AttentionGradients<T>& g) {
  const auto whole = [](const Heads<T>& x) {
    return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && (x.batch % 4 | x.time % 4 | x.head % 4) == 0;
  };
  const bool vectors = whole(a.y) && whole(g.dy) && a.size.P % 4 == 0;
  const auto run = [&]<int lanes>() {
    launch(ctx, attention_delta_kernel<T, lanes>,
           dim3(blocks_for(a.size.T * a.size.H, attention_delta_threads / lanes * attention_delta_rows),
                static_cast<unsigned>(a.size.B)),
           attention_delta_threads, 0, a, g, vectors);
  };
  if (a.size.P <= 64) return run.template operator()<8>();
  run.template operator()<32>();
}

template <class T>
void attention_scalar_backward(const Context& ctx, const AttentionOperands<T>& a,
                               const AttentionGradients<T>& g) {
  const auto pass = [&]<Output which>(int64_t columns) {
    with_groups(columns, [&]<int G>() {
      launch(ctx, attention_backward_kernel<T, which, G>, dim3(blocks_of(a), blocks_for(columns, 64 * G)),
             threads, sizeof(Tiles<T>), a, g);
    });
  };
  if (g.wants_q) pass.template operator()<Output::dq>(a.size.N);
  if (g.wants_k) pass.template operator()<Output::dk>(a.size.N);
  if (g.wants_v) pass.template operator()<Output::dv>(a.size.P);
}

template void attention_scalar(const Context&, const AttentionOperands<float>&);
template void attention_scalar(const Context&, const AttentionOperands<double>&);
template void attention_delta(const Context&, const AttentionOperands<float>&,
                              const AttentionGradients<float>&);
template void attention_delta(const Context&, const AttentionOperands<double>&,
                              const AttentionGradients<double>&);
template void attention_scalar_backward(const Context&, const AttentionOperands<float>&,
                                        const AttentionGradients<float>&);
template void attention_scalar_backward(const Context&, const AttentionOperands<double>&,
                                        const AttentionGradients<double>&);

}  // namespace eigentrace::kernels
#endif
