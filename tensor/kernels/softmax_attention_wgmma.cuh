#pragma once
// Softmax attention's backward pass in bf16 where the device has wgmma (tensor/wgmma.h). Equations:
// softmax_attention.cu.
//
// attention_pack_kernel reads y, dy, q and lse once and writes, for each 64 queries of a head, what the
// second kernel copies to shared memory in one piece, as its products want it: dy and q · scale log₂e in
// bf16, −lse log₂e and −delta / keep. A block of that one owns 64 keys a warpgroup and walks over these tiles
// with everything transposed, as the mma.sync kernel does: sᵀ = k qᵀ, dpᵀ = v dyᵀ, and pᵀ and dsᵀ are left
// operands of dv += pᵀ dy and dk += dsᵀ q from registers. ds crosses shared memory for dq = ds k, which the
// warpgroups make in turns, or half of its columns each; dq is summed from parts by attention_sum_kernel.
// Exponentials run beside the products of dp, what follows them beside those of dv; k and v stay in registers
// where they have room.
//
// CIFAR (200, 1024, N 16, P 128), H200: a tile of 128 × 64 pairs keeps the tensor cores busy for 1300 clocks
// (dp, dv 512 each) and exponentials for 512; 14400 tiles are 81 µs. IMDB (24, 4096, 16, 32), dropout: 192 ×
// 64 pairs, 1350 issue slots a scheduler, 870 for the tensor cores.
#include "tensor/kernels/softmax_attention_mma.cuh"
#include "tensor/vec.h"
#include "tensor/wgmma.h"

#ifdef EIGENTRACE_WITH_CUDA
namespace eigentrace::kernels {

/// 64 queries of a head; of each its tile's place.
template <int N, int P>
struct AttentionPack {
  static constexpr int queries = attention_wgmma_queries;
  using Dy = WgmmaTile<P, queries>;
  using Q = WgmmaTile<N, queries>;
  static constexpr int q = Dy::bytes, stats = q + Q::bytes, bytes = stats + 8 * queries;
  static_assert(bytes == attention_pack_bytes(N, P));
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

/// A block: a tile of a head.
template <int N, int P>
__global__ void __launch_bounds__(attention_pack_threads)
    attention_pack_kernel(AttentionOperands<float> a, AttentionGradients<float> grad, AttentionAccess access,
                          bool y_in_fours, unsigned char* packs, int tiles) {
  using Pack = AttentionPack<N, P>;
  constexpr int threads = attention_pack_threads, lanes = P / 4, together = threads / lanes,
                each = Pack::queries / together;
  const int length = static_cast<int>(a.size.T), tile = static_cast<int>(blockIdx.x) % tiles,
            i0 = tile * Pack::queries;
  const int64_t item = blockIdx.x / static_cast<unsigned>(tiles), b = item / a.size.H, h = item % a.size.H;
  unsigned char* const to = packs + int64_t{blockIdx.x} * Pack::bytes;
  const AttentionRows q(a.q, b, h, length, a.size.N, access.q),
      dy(grad.dy, b, h, length, a.size.P, access.dy), y(a.y, b, h, length, a.size.P, y_in_fours);
  const int row = static_cast<int>(threadIdx.x) / lanes, column = static_cast<int>(threadIdx.x) % lanes * 4;
  Vec<float, 4> own[each], other[each];
  with_vectors(dy.vectors && y.vectors, [&]<bool all>() {
#pragma unroll
    for (int u = 0; u < each; ++u) {
      own[u] = attention_elements<4, all>(dy, i0 + row + u * together, column);
      other[u] = attention_elements<4, all>(y, i0 + row + u * together, column);
    }
  });
  const float fewer = a.drops ? 1.0f / static_cast<float>(a.mask.keep_scale) : 1.0f;
  auto* const stats = reinterpret_cast<float*>(to + Pack::stats);
  if (const int at = static_cast<int>(threadIdx.x); at < Pack::queries)  // rows after the last: p = 2^−∞
    stats[at] = i0 + at < length ? -a.lse[(b * length + i0 + at) * a.size.H + h] * 1.44269504f : -INFINITY;
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
  with_vectors(q.vectors, [&]<bool all>() {
#pragma unroll
    for (int u = 0; u < Pack::queries * N / 4 / threads; ++u) {
      const int e = u * threads + static_cast<int>(threadIdx.x), at = e / (N / 4), from = e % (N / 4) * 4;
      const auto x = attention_elements<4, all>(q, i0 + at, from).x;
      *reinterpret_cast<uint2*>(to + Pack::q + Pack::Q::offset(at, from)) =
          make_uint2(pack_bf16(x[0] * factor, x[1] * factor), pack_bf16(x[2] * factor, x[3] * factor));
    }
  });
}

/// `groups` warpgroups own keys, one more makes dq.
template <int N, int P>
struct AttentionWgmmaBlock {
  using Pack = AttentionPack<N, P>;
  static constexpr int groups = attention_wgmma_groups(N, P), threads = 128 * (groups + 1),
                       rows = 64 * groups;
  static constexpr bool stays = N == 16;  // k and v, in registers
  static constexpr int dq_columns = N < 32 ? N : 32;
  static constexpr int registers_of_dq = stays ? 40 : 56,
                       registers = (65536 / 128 - registers_of_dq) / groups / 8 * 8;
  static constexpr int stages = stays ? 4 : 3, stage_bytes = (Pack::bytes + 1023) / 1024 * 1024;
  using Ds = WgmmaTile<Pack::queries, rows>;
  using K = WgmmaTile<N, rows>;
  using V = WgmmaTile<P, rows>;
  static constexpr int ds = stages * stage_bytes, k = ds + 2 * Ds::bytes, v = k + K::bytes,
                       barriers = v + (stays ? 0 : V::bytes), bytes = barriers + 8 * stages + 1024;
};

template <int N, int P, bool drops>
__global__ void __launch_bounds__(AttentionWgmmaBlock<N, P>::threads, 1)
    attention_wgmma_backward_kernel(AttentionOperands<float> a, AttentionGradients<float> grad,
                                    AttentionAccess access, AttentionParts parts,
                                    const unsigned char* packs) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Block = AttentionWgmmaBlock<N, P>;
  using Pack = typename Block::Pack;
  using Dy = typename Pack::Dy;
  using Q = typename Pack::Q;
  using K = typename Block::K;
  using V = typename Block::V;
  using Ds = typename Block::Ds;
  constexpr int groups = Block::groups, threads = Block::threads, rows = Block::rows, stages = Block::stages;
  constexpr int queries = Pack::queries, tiles = queries / 8;
  constexpr int full = 1, empty = 3, own_barrier = 5;  // named barriers; two each of ds's two places
  unsigned char* const shared =
      dynamic_shared<unsigned char>() +
      (1024 - __cvta_generic_to_shared(dynamic_shared<unsigned char>()) % 1024) % 1024;
  const auto base = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int length = static_cast<int>(a.size.T);
  const AttentionTurn at(a.size.B * a.size.H, parts.blocks);
  const int64_t b = at.item / a.size.H, h = at.item % a.size.H;
  const AttentionRows k(a.k, b, h, length, a.size.N, access.k), v(a.v, b, h, length, a.size.P, access.v);
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int warp = __shfl_sync(0xFFFFFFFFu, static_cast<int>(threadIdx.x) / 32, 0), group = warp / 4;
  const int j0 = (parts.first_block + at.turn) * rows, own = warp * 16, first = j0 + own;
  const int all_tiles = (length + queries - 1) / queries, count = all_tiles - j0 / queries;
  const auto place = [&](int n) { return base + static_cast<uint32_t>(n % stages * Block::stage_bytes); };
  const auto arrival = [&](int n) {
    return base + static_cast<uint32_t>(Block::barriers + 8 * (n % stages));
  };
  const auto ds_of = [&](int n) { return base + static_cast<uint32_t>(Block::ds + n % 2 * Ds::bytes); };
  const auto fetch = [&](int n) {
    bulk_copy(place(n), packs + (at.item * all_tiles + j0 / queries + n) * Pack::bytes, Pack::bytes,
              arrival(n));
  };

  const bool fetches = threadIdx.x == threads - 128;
  if (fetches) {
    for (int n = 0; n < stages; ++n) bulk_barrier_init(arrival(n));
    fence_for_async();
    for (int n = 0; n < stages && n < count; ++n) fetch(n);
  }
  const auto stage = [&]<class Tile, int width, int by>(unsigned char* to, const AttentionRows& x) {
    with_vectors(x.vectors, [&]<bool all>() {
#pragma unroll 4
      for (int e = static_cast<int>(threadIdx.x) % by; e < rows * width / 4; e += by) {
        const int row = e / (width / 4), column = e % (width / 4) * 4;
        const auto f = attention_elements<4, all>(x, j0 + row, column);
        *reinterpret_cast<uint2*>(to + Tile::offset(row, column)) =
            make_uint2(pack_bf16(f.x[0], f.x[1]), pack_bf16(f.x[2], f.x[3]));
      }
    });
  };
  if constexpr (!Block::stays) {
    stage.template operator()<K, N, threads>(shared + Block::k, k);
    stage.template operator()<V, P, threads>(shared + Block::v, v);
    fence_for_async();
  }
  __syncthreads();

  if (group == groups) {
    fewer_registers<Block::registers_of_dq>();
    if constexpr (Block::stays) {
      stage.template operator()<K, N, 128>(shared + Block::k, k);
      fence_for_async();
      named_sync(own_barrier, 128);
    }
    float* const dq_part = parts.data + (at.turn * a.size.B * a.size.H + at.item) * length * N;
    for (int n = 0; n < count; ++n) {
      named_sync(full + n % 2, threads);  // ds is there, and products of the tile before have been waited for
      if (fetches && n > 0 && n - 1 + stages < count) fetch(n - 1 + stages);
      const int i = j0 + queries * n + warp % 4 * 16 + g;
#pragma unroll 1
      for (int part = 0; part < (grad.wants_q ? N / Block::dq_columns : 0); ++part) {
        float dq[Block::dq_columns / 2];
        wgmma_fence();
        const int seen = queries * (n + 1) < rows ? n + 1 : groups;
#pragma unroll 1
        for (int e = 0; e < seen; ++e)
#pragma unroll
          for (int u = 0; u < 4; ++u)
            wgmma_bf16<Block::dq_columns, 1, 1>(
                dq, wgmma_rows_of<Ds>(ds_of(n), 4 * e + u),
                wgmma_rows_of<K>(base + Block::k, 4 * e + u, part * Block::dq_columns), e + u > 0);
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_pin(dq);
        float* const to = dq_part + int64_t{i} * N + part * Block::dq_columns + 2 * t;
#pragma unroll
        for (int r = 0; r < 2; ++r)
          if (i + 8 * r < length)
#pragma unroll
            for (int c = 0; c < Block::dq_columns / 8; ++c)
              *reinterpret_cast<float2*>(to + 8 * r * N + 8 * c) =
                  make_float2(dq[4 * c + 2 * r], dq[4 * c + 2 * r + 1]);
      }
      if (n + 2 < count) named_arrive(empty + n % 2, threads);
    }
    return;
  }

  more_registers<Block::registers>();
  const float keep = drops ? static_cast<float>(a.mask.keep_scale) : 1.0f;
  const AttentionMask mask = drops ? AttentionMask(a.mask, at.item, length) : AttentionMask();
  const int64_t mask_block = drops ? mask.block(j0 + 2 * t + g % 2, first + g / 2 * 2) : 0;
  uint32_t k_left[Block::stays ? N / 16 : 1][4], v_left[Block::stays ? P / 16 : 1][4];
  const auto fragments = [&](auto& left, const AttentionRows& x) {
    constexpr int n = sizeof(left) / sizeof(left[0]);
    with_vectors(x.vectors, [&]<bool all>() {
      Vec<float, 2> f[n][4];
#pragma unroll
      for (int c = 0; c < n; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          f[c][i] = attention_elements<2, all>(x, first + g + i % 2 * 8, 16 * c + i / 2 * 8 + 2 * t);
#pragma unroll
      for (int c = 0; c < n; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i) left[c][i] = pack_bf16(f[c][i].x[0], f[c][i].x[1]);
    });
  };
  if constexpr (Block::stays) fragments(k_left, k), fragments(v_left, v);
  float dk[N / 2] = {}, dv[P / 2] = {}, s[queries / 2], d[queries / 2];
  uint32_t p_left[queries / 16][4], ds_left[queries / 16][4];

  for (int n = 0; n < group && n < count; ++n) named_arrive(full + n, threads);  // queries before these keys
#pragma unroll 1
  for (int n = group; n < count; ++n) {
    const uint32_t dy_now = place(n), q_now = dy_now + Pack::q;
    const auto* stats =
        reinterpret_cast<const float*>(shared + n % stages * Block::stage_bytes + Pack::stats) + 2 * t;
    bulk_wait(arrival(n), n / stages % 2);
    if constexpr (Block::stays) wgmma_pin(k_left), wgmma_pin(v_left);
    wgmma_fence();
#pragma unroll
    for (int e = 0; e < N / 16; ++e)
      if constexpr (Block::stays)
        wgmma_bf16<queries, 0>(s, k_left[e], wgmma_columns_of<Q>(q_now, e), e > 0);
      else
        wgmma_bf16<queries, 0, 0>(s, wgmma_columns_of<K>(base + Block::k, e, 64 * group),
                                  wgmma_columns_of<Q>(q_now, e), e > 0);
    wgmma_commit();
    if constexpr (!Block::stays) {  // frees the registers of the tile before while products of s run
      wgmma_wait<1>();
      wgmma_pin(p_left), wgmma_pin(ds_left), wgmma_pin(dv), wgmma_pin(dk);
    }
#pragma unroll
    for (int e = 0; e < P / 16; ++e)
      if constexpr (Block::stays)
        wgmma_bf16<queries, 0>(d, v_left[e], wgmma_columns_of<Dy>(dy_now, e), e > 0);
      else
        wgmma_bf16<queries, 0, 0>(d, wgmma_columns_of<V>(base + Block::v, e, 64 * group),
                                  wgmma_columns_of<Dy>(dy_now, e), e > 0);
    wgmma_commit();
    uint32_t words[drops ? tiles / 2 : 1][4];
    if constexpr (drops) {
#pragma unroll
      for (int c = 0; c < tiles / 2; c += 2) {
        const int64_t block[2] = {mask_block + (queries * n + 16 * c) * 2 * mask.blocks,
                                  mask_block + (queries * n + 16 * c + 16) * 2 * mask.blocks};
        Philox4 w[2];
        mask.words(w, block);
        attention_transpose(words[c], w[0]);
        attention_transpose(words[c + 1], w[1]);
      }
    }
    wgmma_wait<1>();
    wgmma_pin(s);
#pragma unroll
    for (int c = 0; c < tiles; ++c) {
      const float2 start = *reinterpret_cast<const float2*>(stats + 8 * c);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& p = s[4 * c + e];
        p = attention_exp2(p + (e % 2 ? start.y : start.x));
        if constexpr (drops)  // what is dropped: with its sign
          if (!mask.keeps(words[c / 2][c % 2 * 2 + e / 2], e % 2)) p = -p;
      }
    }
    if (n == group) {
#pragma unroll
      for (int i = 0; i < queries / 2; ++i)
        if (warp % 4 * 16 + g + i / 2 % 2 * 8 > i / 4 * 8 + 2 * t + i % 2) s[i] = 0;
    }
    const auto kept = [&](float x) { return drops ? fmaxf(x, 0.0f) : x; };
#pragma unroll
    for (int e = 0; e < queries / 16; ++e)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        p_left[e][i] = pack_bf16(kept(s[8 * e + 2 * i]), kept(s[8 * e + 2 * i + 1]));
    wgmma_pin(p_left);
    wgmma_fence();
#pragma unroll
    for (int e = 0; e < queries / 16; ++e)
      wgmma_bf16<P, 1>(dv, p_left[e], wgmma_rows_of<Dy>(dy_now, e), true);
    wgmma_commit();
    wgmma_wait<1>();
    wgmma_pin(d);
#pragma unroll
    for (int c = 0; c < tiles; ++c) {
      const float2 less = *reinterpret_cast<const float2*>(stats + queries + 8 * c);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const uint32_t pair = p_left[c / 2][c % 2 * 2 + e / 2];
        const float p =
            Block::stays || drops ? s[4 * c + e] : __uint_as_float(e % 2 ? pair & 0xFFFF0000u : pair << 16);
        const float delta = e % 2 ? less.y : less.x;
        float& ds = d[4 * c + e];
        ds = drops ? fmaf(kept(p), ds, fabsf(p) * delta) : p * (ds + delta);
      }
    }
#pragma unroll
    for (int e = 0; e < queries / 16; ++e)
#pragma unroll
      for (int i = 0; i < 4; ++i) ds_left[e][i] = pack_bf16(d[8 * e + 2 * i], d[8 * e + 2 * i + 1]);
    wgmma_pin(ds_left);
    wgmma_fence();
#pragma unroll
    for (int e = 0; e < queries / 16; ++e) wgmma_bf16<N, 1>(dk, ds_left[e], wgmma_rows_of<Q>(q_now, e), true);
    wgmma_commit();
    if (n >= 2) named_sync(empty + n % 2, threads);
#pragma unroll
    for (int e = 0; e < queries / 16; ++e)
      stmatrix_x4(ds_of(n) + static_cast<uint32_t>(Ds::offset(own + lane % 16, 16 * e + lane / 16 * 8)),
                  ds_left[e]);
    fence_for_async();
    named_arrive(full + n % 2, threads);
  }
  wgmma_wait<0>();
  wgmma_pin(dk), wgmma_pin(dv);
  const AttentionRows to_k(grad.dk, b, h, length, a.size.N, access.dk),
      to_v(grad.dv, b, h, length, a.size.P, access.dv);
  const float scale = 0.693147181f * keep;  // q has been scaled
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int j = first + g + 8 * r;
    if (grad.wants_k) to_k.store(j, reinterpret_cast<const float(&)[N / 8][4]>(dk), 2 * r, scale);
    if (grad.wants_v) to_v.store(j, reinterpret_cast<const float(&)[P / 8][4]>(dv), 2 * r, keep);
  }
#endif
}

}  // namespace eigentrace::kernels
#endif
