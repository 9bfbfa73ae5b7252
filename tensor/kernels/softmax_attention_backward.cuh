#pragma once
// Softmax attention on tensor cores, backward. Equations: softmax_attention.cu.
//
// A block owns 16 · groups keys a warp and walks over tiles of queries with everything transposed: dpᵀ = v
// dyᵀ, sᵀ = k qᵀ, then pᵀ and dsᵀ are left operands of dv += pᵀ dy and dk += dsᵀ q from registers, and ds
// goes through shared memory once for dq = ds k, `span` tiles at a time. dq of a tile is written for each
// block of keys on its own and summed by attention_sum_kernel in order: one exponential and one mask a pair,
// the least number of products (3N + 2P), no atomics.
//
// q arrives times scale log₂e; −lse log₂e and, without dropout, −delta are what the sums of sᵀ and dpᵀ start
// from, so that p is 2^sum and ds is p · sum; exponentials are issued between the products of dpᵀ, of which
// each leaves five of six issue slots free.
//
// Floor (H200). CIFAR (200, 1024, N 16, P 128), bf16: 64 GFLOP = 105 µs at mma.sync's rate; operands 0.47 GB
// = 112 µs; shared memory, which v, dy and dyᵀ cross for every 32 × 32 pairs, 100 µs. Measured 318 µs (+ 53
// delta, 21 sum): two warps a scheduler, tensor cores busy a third of the time. Where warps stand: products
// 24 % (dp) and 20 % (dv, dk), barriers 12 %, a block's start 11 %, rounding dy 10 %, dq 8 %. IMDB (24, 4096,
// 16, 32), dropout: 45 GFLOP = 75 µs, 201 M exponentials = 56 µs; measured 337 µs, 0.48 instructions a clock,
// masks a third of them. MQAR (64, 512, 128, 128): 82 µs.
#include "tensor/kernels/softmax_attention_mma.cuh"

#ifdef EIGENTRACE_WITH_CUDA
namespace eigentrace::kernels {

/// dq of `columns` queries from i0 on out of ds [key][query] and k [key][N] in shared memory, keys from j0
/// on; rows of `to` (row i0 its first) at or after `length` are not written.
template <class M, int N, int rows, int columns, int warps>
__device__ __forceinline__ void attention_dq(float* to, const typename M::Element* ds_s,
                                             const typename M::Element* k_s, int i0, int j0, int length) {
  constexpr int np = N + M::pad, sp = columns + M::pad;
  constexpr int row_pieces = columns / 16, column_pieces = N / 16, each = row_pieces * column_pieces / warps;
  constexpr int shared = each < 1 ? 1 : each < row_pieces ? each : row_pieces;  // of one right operand
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  for (int u = static_cast<int>(threadIdx.x) / 32; u < row_pieces / shared * column_pieces; u += warps) {
    const int row = u % (row_pieces / shared) * 16 * shared, column = u / (row_pieces / shared) * 16;
    if (i0 + row >= length) continue;
    const int seen = i0 + row + 16 * shared - j0, end = seen < rows ? seen : rows;  // later keys have no part
    float d[shared][2][4] = {};
#pragma unroll 4
    for (int key = 0; key < end; key += 16) {
      const auto right = M::load_columns(k_s + key * np + column, np);
#pragma unroll
      for (int m = 0; m < shared; ++m)
        M::mma(d[m][0], d[m][1], M::load_transposed(ds_s + key * sp + row + 16 * m, sp), right);
    }
#pragma unroll
    for (int m = 0; m < shared; ++m)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int i = row + 16 * m + g + 8 * r;
        float* p = to + i * N + column + 2 * t;
        if (i0 + i >= length) continue;
        *reinterpret_cast<float2*>(p) = make_float2(d[m][0][2 * r], d[m][0][2 * r + 1]);
        *reinterpret_cast<float2*>(p + 8) = make_float2(d[m][1][2 * r], d[m][1][2 * r + 1]);
      }
  }
}

template <class M, int N, int P, bool drops>
__global__ void __launch_bounds__(AttentionShapes<M, N, P>::backward.threads(),
                                  AttentionShapes<M, N, P>::backward.resident)
    attention_mma_backward_kernel(AttentionOperands<float> a, AttentionGradients<float> grad,
                                  AttentionAccess access, AttentionParts parts) {
  using Element = typename M::Element;
  constexpr AttentionShape shape = AttentionShapes<M, N, P>::backward;
  constexpr int threads = shape.threads(), rows = shape.rows(), groups = shape.groups, queries = shape.tile;
  constexpr int own_rows = 16 * groups, tiles = queries / 8, columns = shape.span * queries;
  constexpr int np = N + M::pad, pp = P + M::pad, sp = columns + M::pad;
  static_assert(rows % columns == 0 && queries <= threads);
  auto* raw_stats = dynamic_shared<float>();
  auto *raw_q = raw_stats + 10 * queries, *raw_dy = raw_q + queries * N;
  // −lse log₂e of two queries, twice, as the sums of two rows start from it; then −delta
  auto* stats_s = raw_stats + 2 * queries;
  auto* k_s = reinterpret_cast<Element*>(sizeof(Element) == 4 ? raw_q : raw_dy + queries * P);
  auto *v_s = k_s + rows * np, *q_s = v_s + rows * pp, *dy_s = q_s + 2 * queries * np,
       *ds_s = dy_s + 2 * queries * pp;
  const int length = static_cast<int>(a.size.T);
  const AttentionTurn at(a.size.B * a.size.H, parts.blocks);
  const int64_t b = at.item / a.size.H, h = at.item % a.size.H;
  const AttentionRows q(a.q, b, h, length, a.size.N, access.q), k(a.k, b, h, length, a.size.N, access.k),
      v(a.v, b, h, length, a.size.P, access.v), dy(grad.dy, b, h, length, a.size.P, access.dy);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int g = lane / 4, t = lane % 4;
  const int own = attention_own(warp) * own_rows;
  const int j0 = (parts.first_block + at.turn) * rows, first = j0 + own;
  const float factor = a.scale * 1.44269504f, keep = drops ? static_cast<float>(a.mask.keep_scale) : 1.0f;
  float* const dq_part = parts.data + (at.turn * a.size.B * a.size.H + at.item) * length * N;

  const AttentionMask mask = drops ? AttentionMask(a.mask, at.item, length) : AttentionMask();
  const int64_t mask_block = drops ? mask.block(2 * t + g % 2, first + g / 2 * 2) : 0;

  using CopyQ = AttentionCopy<M, queries, N, threads>;
  using CopyDy = AttentionCopy<M, queries, P, threads>;
  const auto start = [&](int i0, int slot) {
    CopyQ::start(raw_q, q_s + slot * queries * np, q, i0);
    CopyDy::start(raw_dy, dy_s + slot * queries * pp, dy, i0);
    if (threadIdx.x < queries) {
      const int i = i0 + static_cast<int>(threadIdx.x);
      float* to = raw_stats + 2 * threadIdx.x;
      copy_async_4(to, a.lse + (b * length + i) * a.size.H + h, i < length);
      copy_async_4(to + 1, grad.delta + at.item * length + i, i < length);
    }
    copy_commit();
  };
  // Rows after the last: p = 2^−∞. With dropout ds is keep p (m dp − delta / keep): keep enters at the end.
  const float fewer = 1.0f / keep;
  const auto finish = [&](int i0, int slot) {
    copy_wait<0>();
    CopyQ::finish(raw_q, q_s + slot * queries * np, factor);
    CopyDy::finish(raw_dy, dy_s + slot * queries * pp);
    if (threadIdx.x < queries) {
      const float* from = raw_stats + 2 * threadIdx.x;
      const bool is = i0 + static_cast<int>(threadIdx.x) < length;
      float* to = stats_s + slot * 4 * queries + threadIdx.x / 2 * 4 + threadIdx.x % 2;
      to[0] = to[2] = is ? -from[0] * 1.44269504f : -INFINITY;
      to += 2 * queries;
      to[0] = to[2] = is ? -from[1] * fewer : 0.0f;
    }
  };
  start(j0, 0);
  const auto key = [&](int r) { return j0 + r; };
  attention_stage<M, rows, N, threads>(k_s, k, key);
  attention_stage<M, rows, P, threads>(v_s, v, key);

  __syncthreads();
  const AttentionLeft<M, N, groups, N == 16 && P <= 64> k_left(k_s + own * np);
  const AttentionLeft<M, P, groups> v_left(v_s + own * pp);
  float dk[groups][N / 8][4] = {}, dv[groups][P / 8][4] = {};
  // dq of the `span` tiles up to the one that begins at i0
  const auto add_dq = [&](int i0, int group) {
    const int begin = i0 - (i0 - j0) % columns;
    attention_dq<M, N, rows, columns, shape.warps>(dq_part + int64_t{begin} * N,
                                                   ds_s + (shape.slots == 2 ? group % 2 : 0) * rows * sp, k_s,
                                                   begin, j0, length);
  };
  int i0 = j0;
  for (int n = 0; i0 < length; i0 += queries, ++n) {
    const int now = n % 2, group = n / shape.span, place = n % shape.span;
    finish(i0, now);
    __syncthreads();  // this tile is there, and nobody reads the one before the last
    const bool more = i0 + queries<length, sees = i0 + queries> first;
    if (more) start(i0 + queries, now ^ 1);
    if (shape.slots == 2 && grad.wants_q && n > 0 && place == 0) add_dq(i0 - queries, group - 1);
    const Element *q_now = q_s + now * queries * np, *dy_now = dy_s + now * queries * pp;
    const float* stats_now = stats_s + now * 4 * queries + 4 * t;
    typename M::Fragment p_left[groups][tiles / 2], ds_left[groups][tiles / 2];
    if (sees) {
      constexpr bool less = M::starts && !drops;  // d starts at −delta
      float s[groups][tiles][4], d[groups][tiles][4];
      {
        float start[tiles][4];
#pragma unroll
        for (int c = 0; c < tiles; ++c) attention_read_start(start[c], stats_now + 16 * c);
        attention_row_products<M, N>(s, k_left, q_now,
                                     [&](int, int c) -> const AttentionResults& { return start[c]; });
        if constexpr (!M::starts)
#pragma unroll
          for (int m = 0; m < groups; ++m)
#pragma unroll
            for (int c = 0; c < tiles; ++c)
#pragma unroll
              for (int e = 0; e < 4; ++e) s[m][c][e] += start[c][e];
      }
      {
        float start[tiles][4] = {};
        if constexpr (less) {
#pragma unroll
          for (int c = 0; c < tiles; ++c) attention_read_start(start[c], stats_now + 2 * queries + 16 * c);
        }
        constexpr int all = groups * tiles * 4, each = all / attention_row_steps<P, tiles>;
        static_assert(all % attention_row_steps<P, tiles> == 0);
        attention_row_products<M, P>(
            d, v_left, dy_now, [&](int, int c) -> const AttentionResults& { return start[c]; },
            [&](int u) {
#pragma unroll
              for (int i = each * u; i < each * u + each; ++i) {
                float& p = s[i / (4 * tiles)][i / 4 % tiles][i % 4];
                p = attention_exp2(p);
              }
            });
      }
      Element* const ds_to =
          ds_s + (shape.slots == 2 ? group % 2 : 0) * rows * sp + own * sp + place * queries;
      if (i0 < first + own_rows - 1) {
#pragma unroll
        for (int m = 0; m < groups; ++m)
#pragma unroll
          for (int c = 0; c < tiles; ++c)
#pragma unroll
            for (int e = 0; e < 4; ++e)
              if (first + 16 * m + g + e / 2 * 8 > i0 + 8 * c + 2 * t + e % 2) s[m][c][e] = 0;
      }
#pragma unroll
      for (int c = 0; c < tiles; c += 2) {
        Philox4 w[groups];
        if constexpr (drops) {
          int64_t block[groups];
#pragma unroll
          for (int m = 0; m < groups; ++m) block[m] = mask_block + (i0 + 8 * c) * 2 * mask.blocks + 32 * m;
          mask.words(w, block);
        }
#pragma unroll
        for (int m = 0; m < groups; ++m) {
          uint32_t words[4] = {};
          if constexpr (drops) attention_transpose(words, w[m]);
#pragma unroll
          for (int x = 0; x < 2; ++x) {
            float delta[4] = {};
            if constexpr (!less) attention_read_start(delta, stats_now + 2 * queries + 16 * (c + x));
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              float &p = s[m][c + x][e], &ds = d[m][c + x][e];
              if constexpr (drops) {
                const float kept = mask.keeps(words[2 * x + e / 2], e % 2) ? p : 0.0f;
                ds = fmaf(kept, ds, p * delta[e]);
                p = kept;
              } else {
                ds = p * (less ? ds : ds + delta[e]);
              }
            }
            if (grad.wants_q)
#pragma unroll
              for (int r = 0; r < 2; ++r)
                M::put(ds_to + (16 * m + g + 8 * r) * sp + 8 * (c + x) + 2 * t, d[m][c + x][2 * r],
                       d[m][c + x][2 * r + 1]);
          }
          p_left[m][c / 2] = M::from(s[m][c], s[m][c + 1]);
          ds_left[m][c / 2] = M::from(d[m][c], d[m][c + 1]);
        }
      }
    }
    if (sees) {
      if (grad.wants_k) attention_add_rows<M, N>(dk, ds_left, q_now);
      if (grad.wants_v) attention_add_rows<M, P>(dv, p_left, dy_now);
    }
    if (shape.slots == 1 && grad.wants_q && (!more || place == shape.span - 1)) {
      __syncthreads();
      add_dq(i0, group);
    }
  }
  if (shape.slots == 2 && grad.wants_q) {
    __syncthreads();
    add_dq(i0 - queries, (i0 - queries - j0) / columns);
  }
  const AttentionRows to_k(grad.dk, b, h, length, a.size.N, access.dk),
      to_v(grad.dv, b, h, length, a.size.P, access.dv);
  const float scale = 0.693147181f * keep;  // q has been scaled
#pragma unroll
  for (int m = 0; m < groups; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int j = first + 16 * m + g + 8 * r;
      if (grad.wants_k) to_k.store(j, dk[m], 2 * r, scale);
      if (grad.wants_v) to_v.store(j, dv[m], 2 * r, keep);
    }
}

template <class M>
void attention_mma_backward(const Context& ctx, const AttentionPlan& plan, const AttentionOperands<float>& a,
                            const AttentionGradients<float>& g, const AttentionParts& parts) {
  with_attention_sizes(plan, [&]<int N, int P>() {
    constexpr AttentionShape shape = AttentionShapes<M, N, P>::backward;
    launch(ctx,
           a.drops ? attention_mma_backward_kernel<M, N, P, true>
                   : attention_mma_backward_kernel<M, N, P, false>,
           static_cast<unsigned>(a.size.B * a.size.H * parts.blocks), shape.threads(),
           attention_backward_bytes(shape, M::precision, N, P), a, g, access_of(a, g), parts);
  });
}

}  // namespace eigentrace::kernels
#endif
