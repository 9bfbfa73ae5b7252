#pragma once
// Softmax attention on tensor cores, forward. Equations: softmax_attention.cu.
//
// A block owns 16 · groups queries a warp and walks over tiles of keys: s = q kᵀ in registers, p = 2^(s −
// base), and p as the left operand of y += p v without leaving registers. Tiles travel to shared memory
// asynchronously, and each thread rounds what it copied. q is multiplied by scale log₂e on its way in, and
// −base is what the sums of s start from: an exponential a pair, no maximum and no shuffle. The base is the
// first keys' maximum and headroom; a row's base rises, and y and the sum are scaled, only when one of its p
// reaches 2, which is a bit of p: a row's decision depends on its own scores alone. The exponentials of a
// tile are issued between the products p v of the tile before, of which each leaves five of six issue slots
// free; three places for v, two for k.
//
// Floor (H200, B·H·T²/2 pairs). CIFAR (200, 1024, N 16, P 128), bf16: 30 GFLOP = 50 µs at mma.sync's rate;
// 105 M exponentials at 16 a clock and SM = 28 µs; operands 0.24 GB = 58 µs; right operands from shared
// memory, which 32 queries a warp read together, 32 µs. Measured 152 µs: two warps a scheduler, since 32 ×
// 128 sums take half of a thread's registers; a third of the instructions carry and round tiles. IMDB (24,
// 4096, 16, 32), dropout: 201 M exponentials = 56 µs, 25 M calls of Philox; measured 202 µs, 470 instructions
// per 32 × 32 pairs at 0.5 a clock. MQAR (64, 512, 128, 128): 39 µs; its 64 labelled queries a sequence alone
// 31 against 46 at ncu's clocks.
#include "tensor/kernels/softmax_attention_mma.cuh"

#ifdef EIGENTRACE_WITH_CUDA
namespace eigentrace::kernels {

/// A row's p are 2^(its score − the largest one known − this), and below 2: its scores may grow by 7 powers
/// of 2 before its sums are scaled anew.
constexpr float attention_headroom = 6;
constexpr unsigned attention_processors = 132;  // of a large GPU, which blocks come to in their order

/// picked: a block's queries are a tile of `picks`. Their positions may lie far apart: keys behind a row's
/// own that its warp still works on give p = 0, and change no bit of it.
template <class M, int N, int P, bool picked>
constexpr AttentionShape attention_forward =
    picked ? attention_picks_shape : AttentionShapes<M, N, P>::forward;
template <class M, int N, int P, bool drops, bool picked = false>
__global__ void __launch_bounds__(attention_forward<M, N, P, picked>.threads(),
                                  attention_forward<M, N, P, picked>.resident)
    attention_mma_kernel(AttentionOperands<float> a, AttentionAccess access, AttentionPicks picks) {
  using Element = typename M::Element;
  constexpr AttentionShape shape = attention_forward<M, N, P, picked>;
  constexpr int threads = shape.threads(), rows = shape.rows(), groups = shape.groups, keys = shape.tile,
                ahead = shape.ahead;
  constexpr int own_rows = 16 * groups, part = keys < 32 ? keys : 32, tiles = part / 8;
  constexpr int np = N + M::pad, pp = P + M::pad;
  constexpr bool by_products = M::starts && P <= 64;  // sums of p, where tensor cores have time
  static_assert(part % own_rows == 0, "a row sees a key of every part that its warp works on");
  static_assert(!picked || rows == attention_wgmma_queries);
  using CopyK = AttentionCopy<M, keys, N, threads>;
  using CopyV = AttentionCopy<M, keys, P, threads>;
  static_assert(ahead == 1 || !CopyK::in_place);
  constexpr int raw_tile = keys * (N + P);
  auto* const raw = dynamic_shared<float>();
  auto* q_s = reinterpret_cast<Element*>(CopyK::in_place ? raw : raw + ahead * raw_tile);
  auto *k_s = q_s + rows * np, *v_s = k_s + 2 * keys * np;
  const int length = static_cast<int>(a.size.T), turns = (length + rows - 1) / rows;
  int64_t b = 0, h = 0;
  int i0 = 0, first_pick = 0, end_pick = 0;
  if constexpr (picked) {
    const AttentionPicks::Tile tile =
        picks.tile(static_cast<int>(blockIdx.x) % picks.capacity, static_cast<int>(a.size.B));
    b = tile.sequence, h = static_cast<int>(blockIdx.x) / picks.capacity;
    first_pick = tile.first, end_pick = tile.end;
    if (first_pick >= end_pick) return;
  } else {  // two blocks an SM: the shortest beside the longest
    const unsigned index = gridDim.x <= 2 * attention_processors && blockIdx.x >= attention_processors
                               ? gridDim.x - 1 - (blockIdx.x - attention_processors)
                               : blockIdx.x;
    const AttentionTurn turn(a.size.B * a.size.H, turns, index);
    b = turn.item / a.size.H, h = turn.item % a.size.H;
    i0 = (turns - 1 - turn.turn) * rows;
  }
  // where row r of the block lies in the sequence, `length` or more if it does not
  const auto position = [&](int r) {
    if constexpr (!picked) return i0 + r;
    return first_pick + r < end_pick ? picks.position(first_pick + r, static_cast<int>(b), length) : length;
  };
  const AttentionRows q(a.q, b, h, length, a.size.N, access.q), k(a.k, b, h, length, a.size.N, access.k),
      v(a.v, b, h, length, a.size.P, access.v);
  const AttentionMask mask = drops ? AttentionMask(a.mask, b * a.size.H + h, length) : AttentionMask();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int g = lane / 4, t = lane % 4;
  const int own = attention_own(warp) * own_rows;
  const int first = position(own);
  const int64_t mask_block = drops ? mask.block(first + g, 2 * t) : 0;

  const auto start_copies = [&](int slot, Element* to_k, Element* to_v, int j) {
    CopyK::start(raw + slot * raw_tile, to_k, k, j);
    CopyV::start(raw + slot * raw_tile + keys * N, to_v, v, j);
    copy_commit();
  };
  start_copies(0, k_s, v_s, 0);
  // keys that a block's and a warp's queries see end before these
  int end = i0 + rows < length ? i0 + rows : length, own_end = first + own_rows;
  [[maybe_unused]] int seen[groups][2];  // a picked query's position
  if constexpr (picked) {
    const auto end_of = [&](int r) {
      const int last = position(min(r, end_pick - first_pick) - 1) + 1;
      return last < length ? last : length;
    };
    end = end_of(rows), own_end = first < length ? end_of(own + own_rows) : 0;
#pragma unroll
    for (int u = 1; u < ahead; ++u)
      if (u * keys < end)
        start_copies(u, k_s, v_s, u * keys);
      else
        copy_commit();
#pragma unroll
    for (int m = 0; m < groups; ++m)
      for (int r = 0; r < 2; ++r) seen[m][r] = position(own + 16 * m + g + 8 * r);
  }
  attention_stage<M, rows, N, threads>(q_s, q, position, a.scale * 1.44269504f);
  __syncthreads();
  const AttentionLeft<M, N, groups, N == 16> q_left(q_s + own * np);
  // −base: p = 2^(score − base)
  float out[groups][P / 8][4] = {}, start[groups][4], sum[groups][by_products ? 4 : 2] = {};
#pragma unroll
  for (int m = 0; m < groups; ++m) attention_set_start(start[m], 0, 0);
  const auto score = [&](float(&s)[groups][tiles][4], const Element* k_now, int j0) {
    attention_row_products<M, N>(s, q_left, k_now,
                                 [&](int m, int) -> const AttentionResults& { return start[m]; });
    if (j0 + part - 1 <= first) return;
#pragma unroll
    for (int m = 0; m < groups; ++m)
#pragma unroll
      for (int c = 0; c < tiles; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (j0 + 8 * c + 2 * t + e % 2 > (picked ? seen[m][e / 2] : first + 16 * m + g + e / 2 * 8))
            s[m][c][e] = -INFINITY;
  };
  // Scales rows with a large p anew by their true maximum, the rest stay as they are; before the first keys
  // nothing is known, and all do.
  const auto raise = [&](const float(&s)[groups][tiles][4], const uint32_t(&bits)[groups][2], bool all) {
#pragma unroll
    for (int m = 0; m < groups; ++m) {
      float fade[2], next[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float top = s[m][0][2 * r];
        uint32_t row = bits[m][r];
#pragma unroll
        for (int c = 0; c < tiles; ++c) top = fmaxf(top, fmaxf(s[m][c][2 * r], s[m][c][2 * r + 1]));
#pragma unroll
        for (int lanes = 1; lanes < 4; lanes *= 2) {
          top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, lanes));
          row |= __shfl_xor_sync(0xFFFFFFFFu, row, lanes);
        }
        const float growth =
            M::starts ? top + attention_headroom : top + start[m][2 * r] + attention_headroom;
        const bool grows = all || row & M::large;
        next[r] = grows ? start[m][2 * r] - growth : start[m][2 * r];
        fade[r] = all ? 0.0f : grows ? attention_exp2(-growth) : 1.0f;
        sum[m][by_products ? 2 * r : r] *= fade[r];
      }
      attention_set_start(start[m], next[0], next[1]);
#pragma unroll
      for (int c = 0; c < P / 8; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e) out[m][c][e] *= fade[e / 2];
    }
  };
  typename M::Fragment p_left[groups][tiles / 2];
  const Element* v_before = v_s;  // whose product with p_left is due
  for (int tile0 = 0, now = 0, place = 0, slot = 0; tile0 < end; tile0 += keys, now ^= 1) {
    const int next = place < 2 ? place + 1 : 0;
    const Element *k_now = k_s + now * keys * np, *v_now = v_s + place * keys * pp;
    copy_wait<ahead - 1>();
    CopyK::finish(raw + slot * raw_tile, k_s + now * keys * np);
    CopyV::finish(raw + slot * raw_tile + keys * N, v_s + place * keys * pp);
    __syncthreads();  // this tile is there; nobody reads k of the one before, or v of the one before the last
    if (tile0 + ahead * keys < end)
      start_copies(slot, k_s + (now ^ 1) * keys * np, v_s + next * keys * pp, tile0 + ahead * keys);
    else
      copy_commit();
    place = next;
    slot = slot + 1 < ahead ? slot + 1 : 0;
#pragma unroll 1
    for (int j0 = tile0; j0 < tile0 + keys && j0 < own_end;
         j0 += part, k_now += part * np, v_now += part * pp) {
      float s[groups][tiles][4];
      uint32_t bits[groups][2];
      const auto powers = [&](int from, int to) {
#pragma unroll
        for (int i = from; i < to; ++i) {
          float& x = s[i / (4 * tiles)][i / 4 % tiles][i % 4];
          x = attention_exp2(M::starts ? x : x + start[i / (4 * tiles)][i % 4]);
        }
      };
      const auto finish = [&] {
        attention_fragments<M>(p_left, s);
        uint32_t any = 0;
#pragma unroll
        for (int m = 0; m < groups; ++m)
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            bits[m][r] = 0;
#pragma unroll
            for (int c = 0; c < tiles / 2; ++c) bits[m][r] |= M::row_bits(p_left[m][c], r);
            any |= bits[m][r];
          }
        return (any & M::large) != 0;
      };
      constexpr int all = groups * tiles * 4, steps = attention_add_steps<P, tiles / 2>, each = all / steps;
      static_assert(all % steps == 0);
      score(s, k_now, j0);
      bool raises = j0 == 0;
      if (!raises) {
        attention_add_rows<M, P>(out, p_left, v_before, [&](int u) { powers(each * u, each * u + each); });
        raises = __any_sync(0xFFFFFFFFu, finish());
        if (raises) score(s, k_now, j0);
      }
      if (raises) {
        raise(s, bits, j0 == 0);
        score(s, k_now, j0);
        powers(0, all);
        finish();
      }
#pragma unroll
      for (int m = 0; m < groups; ++m) {
        if constexpr (by_products) {
#pragma unroll
          for (int c = 0; c < tiles / 2; ++c) M::add_row_sums(sum[m], p_left[m][c]);
        } else {
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            float total = 0;
#pragma unroll
            for (int c = 0; c < tiles; ++c) total += s[m][c][2 * r] + s[m][c][2 * r + 1];
            sum[m][r] += total;
          }
        }
      }
      if constexpr (drops) {
        constexpr int pairs = tiles / 2;
        int64_t block[groups * pairs];
        Philox4 w[groups * pairs];
#pragma unroll
        for (int u = 0; u < groups * pairs; ++u)
          block[u] = mask_block + u / pairs * (mask.blocks * 32) + 2 * j0 + u % pairs * 32;
        mask.words(w, block);
        uint32_t kept[groups * pairs][4];
        mask.halves(kept, w);
#pragma unroll
        for (int u = 0; u < groups * pairs; ++u) {
          const uint32_t in_order[4] = {kept[u][0], kept[u][1], kept[u][2], kept[u][3]};
          M::drop(p_left[u / pairs][u % pairs], in_order);
        }
      }
      v_before = v_now;
      if (j0 + part >= own_end || j0 + part >= end) attention_add_rows<M, P>(out, p_left, v_now);
    }
  }

  const AttentionRows y(a.y, picked ? 0 : b, h, picked ? end_pick : length, a.size.P, access.y);
#pragma unroll
  for (int m = 0; m < groups; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float total = sum[m][by_products ? 2 * r : r];
      if constexpr (!by_products) {
        total += __shfl_xor_sync(0xFFFFFFFFu, total, 1);
        total += __shfl_xor_sync(0xFFFFFFFFu, total, 2);
      }
      const int row = picked ? first_pick + own + 16 * m + g + 8 * r : first + 16 * m + g + 8 * r;
      const bool exists = picked ? seen[m][r] < length : row < length;
      const float inverse = (drops ? static_cast<float>(a.mask.keep_scale) : 1.0f) / total;
      if (t == 0 && exists)
        a.lse[((picked ? 0 : b * length) + row) * a.size.H + h] =
            0.693147181f * (log2f(total) - start[m][2 * r]);
      if (exists) y.store(row, out[m], 2 * r, inverse);
    }
}

template <class M>
void attention_mma(const Context& ctx, const AttentionPlan& plan, const AttentionOperands<float>& a) {
  with_attention_sizes(plan, [&]<int N, int P>() {
    constexpr AttentionShape shape = AttentionShapes<M, N, P>::forward;
    const int64_t blocks = a.size.B * a.size.H * ((a.size.T + shape.rows() - 1) / shape.rows());
    launch(ctx, a.drops ? attention_mma_kernel<M, N, P, true> : attention_mma_kernel<M, N, P, false>,
           static_cast<unsigned>(blocks), shape.threads(), attention_forward_bytes(shape, M::precision, N, P),
           a, access_of(a, {}), AttentionPicks{});
  });
}

}  // namespace eigentrace::kernels
#endif
