#pragma once
// Softmax attention's backward pass of picked queries (AttentionPicks) by wgmma, for heads 128 wide, bf16.
// Equations: softmax_attention.cu.
//
// A block owns 128 keys, each of its two warpgroups 64 of them, and walks over its sequence's tiles of 64
// picked queries, as softmax_attention_pack.cuh has laid them down, twice: for dv, then for dk and dq, so
// that one sum of 128 columns is in registers at a time and two blocks share an SM; 32 queries at a time.
// With few queries a sequence (MQAR: one tile) s is cheap to make twice, and what counts is that k, v, dk and
// dv pass memory without waiting. Tiles whose queries all come before a block's keys are left out; a block
// that none is left to writes zeros.
//
// MQAR (64, 512, 128, 128; 64 labels a sequence): 67 MB of k, v, dk and dv, 16 µs on an H200, all 256 blocks
// at a time.
#include "tensor/kernels/softmax_attention_pack.cuh"

#ifdef EIGENTRACE_WITH_CUDA
namespace eigentrace::kernels {

template <int N, int P>
struct AttentionPicksBlock {
  using Pack = AttentionPack<N, P, true>;
  static constexpr int groups = 2, threads = 128 * groups, rows = 64 * groups, queries = Pack::queries,
                       half = queries / 2;
  using K = WgmmaTile<N, rows>;
  using V = WgmmaTile<P, rows>;
  using Ds = WgmmaTile<queries, rows>;
  static constexpr int v = K::bytes, ds = v + V::bytes, tile = ds + Ds::bytes, arrival = tile + Pack::bytes;
  // Two blocks fill an SM's shared memory to 248 bytes: none is left to round its beginning up. A GPU's is a
  // multiple of 1024, since that many bytes are the system's.
  static constexpr int slack = cuda_is_emulated() ? 1024 : 0, bytes = arrival + 8 + slack;
  static_assert(ds % 1024 == 0 && tile % 1024 == 0 && Pack::q % 1024 == 0);
  static_assert(2 * (bytes - slack + 1024) <= 228 * 1024);
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
/// pᵀ of 64 keys and 32 queries in bf16. k, q: their tiles' places; stats: of these queries; j: the key of
/// row 0 of the lane's.
template <class Block>
__device__ __forceinline__ void attention_picks_weights(uint32_t (&p)[Block::half / 16][4], uint32_t k,
                                                        int key, uint32_t q, const float* stats, int j) {
  constexpr int half = Block::half, N = Block::K::bytes / Block::rows / 2;
  float s[half / 2];
  wgmma_fence();
#pragma unroll
  for (int e = 0; e < N / 16; ++e)
    wgmma_bf16<half, 0, 0>(s, wgmma_columns_of<typename Block::K>(k, e, key),
                           wgmma_columns_of<typename Block::Pack::Q>(q, e), e > 0);
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_pin(s);
#pragma unroll
  for (int c = 0; c < half / 8; ++c) {
    const float2 start = *reinterpret_cast<const float2*>(stats + 8 * c);
    const int2 at = *reinterpret_cast<const int2*>(stats + 2 * Block::queries + 8 * c);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      float& x = s[4 * c + e];
      x = attention_exp2(x + (e % 2 ? start.y : start.x));
      if (j + e / 2 * 8 > (e % 2 ? at.y : at.x)) x = 0;
    }
  }
#pragma unroll
  for (int e = 0; e < half / 16; ++e)
#pragma unroll
    for (int i = 0; i < 4; ++i) p[e][i] = pack_bf16(s[8 * e + 2 * i], s[8 * e + 2 * i + 1]);
}

/// sum [64 keys × columns] (adds ? + : =) p [64 × 16 pieces queries] times rows 16 first … of a tile.
template <class Tile, int width, int pieces>
__device__ __forceinline__ void attention_picks_add(float (&sum)[width], uint32_t (&p)[pieces][4],
                                                    uint32_t tile, int first, bool adds) {
  wgmma_pin(p), wgmma_pin(sum);
  wgmma_fence();
#pragma unroll
  for (int e = 0; e < pieces; ++e)
    wgmma_bf16<2 * width, 1>(sum, p[e], wgmma_rows_of<Tile>(tile, first + e), adds || e > 0);
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_pin(p), wgmma_pin(sum);
}
#endif

template <int N, int P>
__global__ void __launch_bounds__(AttentionPicksBlock<N, P>::threads, 2)
    attention_picks_backward_kernel(AttentionOperands<float> a, AttentionGradients<float> grad,
                                    AttentionAccess access, AttentionParts parts, const unsigned char* packs,
                                    AttentionPicks picks) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Block = AttentionPicksBlock<N, P>;
  using Pack = typename Block::Pack;
  using Dy = typename Pack::Dy;
  using Q = typename Pack::Q;
  using K = typename Block::K;
  using V = typename Block::V;
  using Ds = typename Block::Ds;
  static_assert(N == P);
  constexpr int threads = Block::threads, rows = Block::rows, queries = Block::queries, half = Block::half;
  unsigned char* const raw = dynamic_shared<unsigned char>();
  unsigned char* const shared =
      raw + (Block::slack > 0 ? (1024 - __cvta_generic_to_shared(raw) % 1024) % 1024 : 0);
  const auto base = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const uint32_t arrival = base + Block::arrival, dy = base + Block::tile, q = dy + Pack::q;
  const int length = static_cast<int>(a.size.T), heads = static_cast<int>(a.size.H);
  const AttentionTurn own_turn(a.size.B * a.size.H, parts.blocks);
  const int item = static_cast<int>(own_turn.item), b = item / heads, h = item % heads,
            j0 = own_turn.turn * rows, lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int warp = __shfl_sync(0xFFFFFFFFu, static_cast<int>(threadIdx.x) / 32, 0), group = warp / 4;

  // k and v: reads of each all under way together
  constexpr int each = rows * N / 4 / threads;
  Vec<float, 4> read[each];
  const auto piece = [&](int u) { return u * threads + static_cast<int>(threadIdx.x); };
  const auto load = [&](const AttentionRows& x) {
    with_vectors(x.vectors, [&]<bool all>() {
#pragma unroll
      for (int u = 0; u < each; ++u)
        read[u] = attention_elements<4, all>(x, j0 + piece(u) / (N / 4), piece(u) % (N / 4) * 4);
    });
  };
  const auto put = [&](unsigned char* to) {
#pragma unroll
    for (int u = 0; u < each; ++u)
      *reinterpret_cast<uint2*>(to + K::offset(piece(u) / (N / 4), piece(u) % (N / 4) * 4)) =
          make_uint2(pack_bf16(read[u].x[0], read[u].x[1]), pack_bf16(read[u].x[2], read[u].x[3]));
  };
  load(AttentionRows(a.k, b, h, length, a.size.N, access.k));

  const int begin = picks.before(b, 0), all = picks.before(b, picks.pieces) - begin;
  const int passed = max(picks.before(b, j0 / queries) - begin, 0), left_out = passed / queries,
            count = passed < all ? (all + queries - 1) / queries - left_out : 0;
  const int64_t first_tile = int64_t{h} * picks.capacity + begin / queries + b + left_out;
  const unsigned char* const from = packs + first_tile * Pack::bytes;
  const AttentionRows to_k(grad.dk, b, h, length, a.size.N, access.dk),
      to_v(grad.dv, b, h, length, a.size.P, access.dv);
  if (count == 0) {
    const auto clear = [&](const AttentionRows& x) {
      for (int e = static_cast<int>(threadIdx.x); e < rows * x.columns; e += threads)
        if (const int j = j0 + e / x.columns; j < length) x.data[j * x.stride + e % x.columns] = 0;
    };
    if (grad.wants_k) clear(to_k);
    if (grad.wants_v) clear(to_v);
    return;
  }
  if (threadIdx.x == 0) {
    bulk_barrier_init(arrival);
    fence_for_async();
    bulk_copy(dy, from, Pack::bytes, arrival);
  }
  put(shared);
  load(AttentionRows(a.v, b, h, length, a.size.P, access.v));
  put(shared + Block::v);
  fence_for_async();
  __syncthreads();

  const int own = 64 * group + warp % 4 * 16, first_key = j0 + own + g;
  const auto* const stats = reinterpret_cast<const float*>(shared + Block::tile + Pack::stats) + 2 * t;
  float sum[N / 2];
#pragma unroll 1
  for (int n = 0; n < count; ++n) {
    if (n > 0) {
      __syncthreads();
      if (threadIdx.x == 0) bulk_copy(dy, from + int64_t{n} * Pack::bytes, Pack::bytes, arrival);
    }
    bulk_wait(arrival, n % 2);
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      uint32_t p[half / 16][4];
      attention_picks_weights<Block>(p, base, 64 * group, q + part * half * Q::row_bytes, stats + part * half,
                                     first_key);
      attention_picks_add<Dy>(sum, p, dy, part * (half / 16), n + part > 0);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r)
    if (grad.wants_v)
      to_v.store(first_key + 8 * r, reinterpret_cast<const float(&)[N / 8][4]>(sum), 2 * r, 1);

#pragma unroll 1
  for (int n = 0; n < count; ++n) {
    if (count > 1) {
      __syncthreads();
      if (threadIdx.x == 0) bulk_copy(dy, from + int64_t{n} * Pack::bytes, Pack::bytes, arrival);
      bulk_wait(arrival, (count + n) % 2);
    }
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      uint32_t p[half / 16][4];
      attention_picks_weights<Block>(p, base, 64 * group, q + part * half * Q::row_bytes, stats + part * half,
                                     first_key);
      float d[half / 2];
      wgmma_fence();
#pragma unroll
      for (int e = 0; e < P / 16; ++e)
        wgmma_bf16<half, 0, 0>(d, wgmma_columns_of<V>(base + Block::v, e, 64 * group),
                               wgmma_columns_of<Dy>(dy + part * half * Dy::row_bytes, e), e > 0);
      wgmma_commit();
      wgmma_wait<0>();
      wgmma_pin(d);
#pragma unroll
      for (int c = 0; c < half / 8; ++c) {
        const float2 less = *reinterpret_cast<const float2*>(stats + queries + part * half + 8 * c);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const uint32_t pair = p[c / 2][c % 2 * 2 + e / 2];
          float& ds = d[4 * c + e];
          ds = __uint_as_float(e % 2 ? pair & 0xFFFF0000u : pair << 16) * (ds + (e % 2 ? less.y : less.x));
        }
      }
#pragma unroll
      for (int e = 0; e < half / 16; ++e) {
#pragma unroll
        for (int i = 0; i < 4; ++i) p[e][i] = pack_bf16(d[8 * e + 2 * i], d[8 * e + 2 * i + 1]);
        stmatrix_x4(
            base + Block::ds +
                static_cast<uint32_t>(Ds::offset(own + lane % 16, part * half + 16 * e + lane / 16 * 8)),
            p[e]);
      }
      attention_picks_add<Q>(sum, p, q, part * (half / 16), n + part > 0);
    }
    fence_for_async();
    __syncthreads();  // ds of all keys is there
    float dq[N / 4];  // 64 queries, half of the columns
    wgmma_fence();
#pragma unroll
    for (int e = 0; e < rows / 16; ++e)
      wgmma_bf16<N / 2, 1, 1>(dq, wgmma_rows_of<Ds>(base + Block::ds, e),
                              wgmma_rows_of<K>(base, e, N / 2 * group), e > 0);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_pin(dq);
    if (grad.wants_q) {
      float* const to =
          parts.data +
          ((int64_t{own_turn.turn} * heads * picks.capacity + first_tile + n) * queries + warp % 4 * 16 + g) *
              N +
          N / 2 * group + 2 * t;
#pragma unroll
      for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int c = 0; c < N / 16; ++c)
          *reinterpret_cast<float2*>(to + 8 * r * N + 8 * c) =
              make_float2(dq[4 * c + 2 * r], dq[4 * c + 2 * r + 1]);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r)
    if (grad.wants_k)  // q has been scaled
      to_k.store(first_key + 8 * r, reinterpret_cast<const float(&)[N / 8][4]>(sum), 2 * r, 0.693147181f);
#endif
}

}  // namespace eigentrace::kernels
#endif
