#pragma once
// CUDA bodies of embedding.cu.
//
// Backward: the positions in order of their tokens are cut into pieces of 16 or 32; a warp walks through a
// piece for 32 packs of columns and writes the runs of equal tokens that lie inside it; of a run that goes
// beyond a piece it keeps the part at the piece's head and the part at its tail. A second launch adds the
// parts of every such run, in order: a token that fills half of the batch costs no more than any other.
// Bytes, float32: one read of dy (CIFAR 105 MB, a floor of 25 µs; MQAR 16.8 MB) and at most 1/8 of it again
// for parts.
#ifdef EIGENTRACE_WITH_CUDA
#include <algorithm>
#include <cmath>

#include "tensor/dispatch.h"
#include "tensor/kernels.h"
#include "tensor/vec.h"

namespace eigentrace::kernels {

template <class T>
struct Lookup {
  const int32_t* ids;
  const T *table, *positions, *bias;
  T* y;
  int64_t rows, vocabulary, time, width, table_stride, position_stride;
};

template <int width, class T>
__global__ void __launch_bounds__(256) lookup_kernel(const __grid_constant__ Lookup<T> l) {
  const int64_t i = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * width;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (i >= l.width || row >= l.rows) return;
  const int32_t id = l.ids[row];
  Vec<T, width> value;
  if (id >= 0 && id < l.vocabulary) {
    value = load_vec<width>(l.table + id * l.table_stride + i);
  } else {  // the host refuses such ids; a device cannot: NaN, not somebody's memory
#pragma unroll
    for (int j = 0; j < width; ++j) value.x[j] = T(NAN);
  }
  if (l.positions) {
    const Vec<T, width> p = load_vec<width>(l.positions + row % l.time * l.position_stride + i);
#pragma unroll
    for (int j = 0; j < width; ++j) value.x[j] += p.x[j];
  }
  if (l.bias) {
    const Vec<T, width> b = load_vec<width>(l.bias + i);
#pragma unroll
    for (int j = 0; j < width; ++j) value.x[j] += b.x[j];
  }
  store_vec(l.y + row * l.width + i, value);
}

template <class T>
void embedding_cuda(const Context& ctx, const Tensor& ids, const Tensor& table, const Tensor& positions,
                    const Tensor& bias, const Tensor& y) {
  if (y.numel() == 0) return;
  const bool with_positions = positions.defined(), with_bias = bias.defined();
  const Lookup<T> l{ids.data<int32_t>(),
                    table.data<T>(),
                    with_positions ? positions.data<T>() : nullptr,
                    with_bias ? bias.data<T>() : nullptr,
                    y.data<T>(),
                    ids.numel(),
                    table.dim(0),
                    ids.dim(-1),
                    table.dim(1),
                    rows_of<T>(table, "embedding: table").stride,
                    with_positions ? rows_of<T>(positions, "embedding: positions").stride : 0};
  const auto start = [&]<int width>() {
    const int64_t packs = (l.width + width - 1) / width, across = std::min<int64_t>(packs, 128);
    const int64_t down = 256 / across;
    launch(ctx, lookup_kernel<width, T>, dim3(blocks_for(l.rows, down), blocks_for(packs, across)),
           dim3(static_cast<unsigned>(across), static_cast<unsigned>(down)), 0, l);
  };
  if (rows_are_aligned<T>(table) && rows_are_aligned<T>(y) &&
      (!with_positions || rows_are_aligned<T>(positions)) && (!with_bias || rows_are_aligned<T>(bias)))
    start.template operator()<vec_width<T>>();
  else
    start.template operator()<1>();
}

template <class T>
struct SortedGradient {
  const int32_t *ids, *order;
  Rows<T> dy;
  T* dtable;
  int64_t stride, vocabulary;
  T* parts;  ///< [pieces, 2, D]: of the run at a piece's head, of the run at its tail
  int64_t pieces;
  int size;  ///< positions of a piece, at most 32

  __device__ __forceinline__ int32_t token(int64_t k) const { return ids[order[k]]; }
};

template <int width, class T>
__device__ __forceinline__ void add_pack(Vec<T, width>& sum, const Vec<T, width>& x) {
#pragma unroll
  for (int i = 0; i < width; ++i) sum.x[i] += x.x[i];
}

/// A warp a piece (block: 32 packs of columns, 4 pieces).
template <int width, class T>
__global__ void __launch_bounds__(128) embedding_pieces_kernel(const __grid_constant__ SortedGradient<T> g) {
  const int64_t piece = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * 32 + threadIdx.x) * width;
  if (piece >= g.pieces) return;
  const int64_t begin = piece * g.size, left = g.dy.rows - begin;
  const int count = static_cast<int>(left < g.size ? left : g.size), lane = static_cast<int>(threadIdx.x);
  const bool inside = column < g.dy.cols;
  const int32_t my_row = lane < count ? g.order[begin + lane] : 0;
  const int32_t my_id = lane < count ? g.ids[my_row] : -1;
  int32_t id = __shfl_sync(0xFFFFFFFFu, my_id, 0);
  bool head = piece > 0 && g.token(begin - 1) == id;  // the run began in an earlier piece
  Vec<T, width> sum;
  const auto put = [&](bool part, int which) {
    if (!inside || id < 0 || id >= g.vocabulary) return;
    store_vec(part ? g.parts + (2 * piece + which) * g.dy.cols + column : g.dtable + id * g.stride + column,
              sum);
  };
  for (int first = 0; first < count; first += 4) {
    Vec<T, width> x[4];
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      const int64_t row = __shfl_sync(0xFFFFFFFFu, my_row, first + u);
      if (inside && first + u < count) x[u] = load_vec<width>(g.dy.data + row * g.dy.stride + column);
    }
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      const int32_t next = __shfl_sync(0xFFFFFFFFu, my_id, first + u);
      if (first + u >= count) break;
      if (next != id) put(head, 0), id = next, head = false, sum = Vec<T, width>{};
      add_pack(sum, x[u]);
    }
  }
  const bool goes_on = begin + count < g.dy.rows && g.token(begin + count) == id;
  put(head || goes_on, head ? 0 : 1);
}

/// The runs that begin in eight pieces and end in later ones: parts summed by 8 threads a column, then these
/// in order.
template <int width, class T>
__global__ void __launch_bounds__(256) embedding_runs_kernel(const __grid_constant__ SortedGradient<T> g) {
  __shared__ int32_t begins[8];  // the token of the run, −1: none
  Vec<T, width>* shared = dynamic_shared<Vec<T, width>>();
  const int64_t first_piece = static_cast<int64_t>(blockIdx.x) * 8;
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * 32 + threadIdx.x) * width;
  const bool inside = column < g.dy.cols;
  if (threadIdx.y == 0 && threadIdx.x < 8) {
    const int64_t piece = first_piece + threadIdx.x, next = (piece + 1) * g.size;
    int32_t run = -1;
    if (next < g.dy.rows) {  // not the last piece
      const int32_t id = g.token(next - 1);
      const bool earlier =
          piece > 0 && g.token(piece * g.size - 1) == id;  // the order is sorted: all of it is id
      if (g.token(next) == id && !earlier && id < g.vocabulary) run = id;
    }
    begins[threadIdx.x] = run;
  }
  __syncthreads();
  for (int j = 0; j < 8; ++j) {
    const int32_t id = begins[j];
    if (id < 0) continue;
    const int64_t piece = first_piece + j;
    Vec<T, width> sum;
    if (inside) {
      if (threadIdx.y == 0) sum = load_vec<width>(g.parts + (2 * piece + 1) * g.dy.cols + column);
      for (int64_t k = piece + 1 + threadIdx.y; k < g.pieces && g.token(k * g.size) == id; k += 8)
        add_pack(sum, load_vec<width>(g.parts + 2 * k * g.dy.cols + column));
    }
    shared[threadIdx.y * 32 + threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && inside) {
      for (int y = 1; y < 8; ++y) add_pack(sum, shared[y * 32 + threadIdx.x]);
      store_vec(g.dtable + id * g.stride + column, sum);
    }
    __syncthreads();
  }
}

inline void embedding_backward_cuda(Context& ctx, const Tensor& ids, const Tensor& order, const Tensor& dy,
                                    Tensor& dtable) {
  const int64_t rows = ids.numel(), width = dy.dim(-1);
  const int size = rows * width >= (int64_t{1} << 23) ? 32 : 16;
  const int64_t pieces = (rows + size - 1) / size;
  const Tensor parts = ctx.empty({pieces, 2, width}, dy.dtype());
  fill(ctx, dtable, 0);  // tokens that do not occur
  if (dy.numel() == 0) return;
  dispatch_floating(ctx, "embedding_backward", dy.dtype(), [&]<class T>() {
    const Rows<T> table = rows_of<T>(dtable, "embedding_backward: dtable");
    const SortedGradient<T> g{ids.data<int32_t>(),
                              order.data<int32_t>(),
                              rows_of<T>(dy, "embedding_backward: dy"),
                              table.data,
                              table.stride,
                              table.rows,
                              parts.data<T>(),
                              pieces,
                              size};
    const auto start = [&]<int w>() {
      const unsigned tiles = blocks_for(width, 32 * w);
      launch(ctx, embedding_pieces_kernel<w, T>, dim3(blocks_for(pieces, 4), tiles), dim3(32, 4), 0, g);
      launch(ctx, embedding_runs_kernel<w, T>, dim3(blocks_for(pieces, 8), tiles), dim3(32, 8),
             256 * w * sizeof(T), g);
    };
    if (rows_are_aligned<T>(dtable) && g.dy.stride % vec_width<T> == 0 && aligned_for_vec(g.dy.data))
      start.template operator()<vec_width<T>>();
    else
      start.template operator()<1>();
  });
}

}  // namespace eigentrace::kernels
#endif
