#pragma once
// What softmax attention's backward pass by wgmma (softmax_attention_wgmma.cuh) copies to shared memory: y,
// dy, q and lse, read once. For each 64 queries of a head, in one piece and as products want it: dy and q ·
// scale log₂e in bf16, −lse log₂e and −delta / keep.
//
// CIFAR (200, 1024, N 16, P 128): 0.27 GB, 69 µs on an H200; MQAR (64, 512, 128, 128) 21 µs, IMDB (24, 4096,
// 16, 32) 12 µs. Of picked queries it clears dq, too.
#include "tensor/kernels/softmax_attention_mma.cuh"
#include "tensor/vec.h"
#include "tensor/wgmma.h"

#ifdef EIGENTRACE_WITH_CUDA
namespace eigentrace::kernels {

/// 64 queries of a head; of each its tile's place. picked: after the stats their positions.
template <int N, int P, bool picked = false>
struct AttentionPack {
  static constexpr int queries = attention_wgmma_queries;
  using Dy = WgmmaTile<P, queries>;
  using Q = WgmmaTile<N, queries>;
  static constexpr int q = Dy::bytes, stats = q + Q::bytes, bytes = stats + (picked ? 12 : 8) * queries;
  static_assert(bytes == attention_pack_bytes(N, P, picked));
};

constexpr int attention_pack_threads = 256;

/// `width` elements of a row from `column` on, zeros outside; all: whether rows can be read in vectors,
/// decided outside of loops, whose loads are then under way together.
template <int width, bool all>
__device__ __forceinline__ Vec<float, width> attention_elements(const AttentionRows& from, int row,
                                                                int column) {
  const int left = row < from.rows ? from.columns - column : 0;
  const float* p = from.data + row * from.stride + column;
  Vec<float, width> x = {};
  if constexpr (all) {
    if (left > 0) x = load_vec<width>(p);
  } else {
#pragma unroll
    for (int i = 0; i < width; ++i)
      if (i < left) x.x[i] = p[i];
  }
  return x;
}
template <class Body>
__device__ __forceinline__ void with_vectors(bool vectors, Body&& body) {
  if (vectors)
    body.template operator()<true>();
  else
    body.template operator()<false>();
}

/// A block: some rows of a head's tile, all of whose reads are under way together.
template <int N, int P>
struct AttentionPackBlock {
  static constexpr int together = attention_pack_threads / (P / 4), each = together < 16 ? 16 / together : 1,
                       rows = together * each, blocks = attention_wgmma_queries / rows;  // of a tile
};
/// Zeros, of which the picked queries' are written over later: while the rest waits for its reads, memory has
/// time for them. The grid's warps share B H T rows, which are as few as dq's parts allow.
__device__ __forceinline__ void attention_clear_dq(const AttentionSizes& size, const Heads<float>& dq,
                                                   bool in_fours) {
  constexpr unsigned warps = attention_pack_threads / 32;
  const auto T = static_cast<unsigned>(size.T), H = static_cast<unsigned>(size.H),
             N = static_cast<unsigned>(size.N), rows = static_cast<unsigned>(size.B) * H * T;
  for (unsigned r = blockIdx.x * warps + threadIdx.x / 32; r < rows; r += gridDim.x * warps) {
    float* const to = dq.row(r / T / H, r / T % H, r % T);
    if (in_fours)
      for (unsigned j = threadIdx.x % 32 * 4; j < N; j += 128) store_vec(to + j, Vec<float, 4>{});
    else
      for (unsigned j = threadIdx.x % 32; j < N; j += 32) to[j] = 0;
  }
}

template <int N, int P, bool picked>
__global__ void __launch_bounds__(attention_pack_threads, 5)
    attention_pack_kernel(AttentionOperands<float> a, AttentionGradients<float> grad, AttentionAccess access,
                          bool y_in_fours, unsigned char* packs, int tiles, AttentionPicks picks) {
  using Pack = AttentionPack<N, P, picked>;
  using Block = AttentionPackBlock<N, P>;
  constexpr int threads = attention_pack_threads, lanes = P / 4, together = Block::together,
                each = Block::each, q_pieces = Block::rows * N / 4,
                q_each = (q_pieces + threads - 1) / threads;
  const unsigned at_tile = blockIdx.x / Block::blocks, H = static_cast<unsigned>(a.size.H);
  unsigned item = at_tile / static_cast<unsigned>(tiles);
  const int length = static_cast<int>(a.size.T),
            row0 = static_cast<int>(blockIdx.x) % Block::blocks * Block::rows;
  const int tile = static_cast<int>(at_tile) % tiles;
  int first = 0, end = 0;
  if constexpr (picked) {
    if (grad.wants_q) attention_clear_dq(a.size, grad.dq, access.dq);
    const AttentionPicks::Tile own = picks.tile(tile, static_cast<int>(a.size.B));
    first = own.first, end = own.end;
    if (first >= end) return;
    item = static_cast<unsigned>(own.sequence) * H + item;
  }
  const unsigned b = item / H, h = item % H;
  const int i0 = tile * Pack::queries;
  // where query r of the tile lies in the sequence, and in y, dy and lse; outside of both: zeros
  const auto place = [&](int r) {
    if constexpr (!picked) return i0 + r;
    return first + r < end ? picks.position(first + r, static_cast<int>(b), length) : length;
  };
  const auto row_of = [&](int r) {
    if constexpr (!picked) return i0 + r;
    return first + r < end ? first + r : picks.size;
  };
  const int row_count = picked ? picks.size : length;
  const unsigned rows_of = picked ? 0 : b;
  unsigned char* const to = packs + int64_t{at_tile} * Pack::bytes;
  const AttentionRows q(a.q, b, h, length, a.size.N, access.q),
      dy(grad.dy, rows_of, h, row_count, a.size.P, access.dy),
      y(a.y, rows_of, h, row_count, a.size.P, y_in_fours);
  const int row = row0 + static_cast<int>(threadIdx.x) / lanes,
            column = static_cast<int>(threadIdx.x) % lanes * 4;
  Vec<float, 4> own[each], other[each], query[q_each];
  with_vectors(dy.vectors && y.vectors, [&]<bool all>() {
#pragma unroll
    for (int u = 0; u < each; ++u) {
      const int at = row_of(row + u * together);
      own[u] = attention_elements<4, all>(dy, at, column);
      other[u] = attention_elements<4, all>(y, at, column);
    }
  });
  const auto q_row = [&](int u) { return row0 + (u * threads + static_cast<int>(threadIdx.x)) / (N / 4); };
  const int q_column = static_cast<int>(threadIdx.x) % (N / 4) * 4;
  const bool has_q = q_pieces >= threads || static_cast<int>(threadIdx.x) < q_pieces;
  static_assert(threads % (N / 4) == 0 && (q_pieces < threads || q_pieces % threads == 0));
  with_vectors(q.vectors, [&]<bool all>() {
#pragma unroll
    for (int u = 0; u < q_each; ++u)
      if (has_q) query[u] = attention_elements<4, all>(q, place(q_row(u)), q_column);
  });
  const float fewer = a.drops ? 1.0f / static_cast<float>(a.mask.keep_scale) : 1.0f;
  auto* const stats = reinterpret_cast<float*>(to + Pack::stats);
  if (const int at = row0 + static_cast<int>(threadIdx.x); at < row0 + Block::rows) {  // beyond: p = 2^−∞
    const int i = place(at);
    stats[at] =
        i < length ? -a.lse[(int64_t{rows_of} * length + row_of(at)) * H + h] * 1.44269504f : -INFINITY;
    if constexpr (picked) reinterpret_cast<int*>(stats)[2 * Pack::queries + at] = i;
  }
#pragma unroll
  for (int u = 0; u < each; ++u) {
    const int at = row + u * together;
    const auto &x = own[u].x, &z = other[u].x;
    *reinterpret_cast<uint2*>(to + Pack::Dy::offset(at, column)) =
        make_uint2(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]));
    float sum = x[0] * z[0] + x[1] * z[1] + x[2] * z[2] + x[3] * z[3];
#pragma unroll
    for (int m = lanes / 2; m > 0; m /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, m);
    if (column == 0) stats[Pack::queries + at] = -sum * fewer;
  }
  const float factor = a.scale * 1.44269504f;
#pragma unroll
  for (int u = 0; u < q_each; ++u)
    if (const auto& x = query[u].x; has_q)
      *reinterpret_cast<uint2*>(to + Pack::q + Pack::Q::offset(q_row(u), q_column)) =
          make_uint2(pack_bf16(x[0] * factor, x[1] * factor), pack_bf16(x[2] * factor, x[3] * factor));
}

}  // namespace eigentrace::kernels
#endif
