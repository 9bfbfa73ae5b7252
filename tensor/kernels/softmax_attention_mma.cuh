#pragma once
// Softmax attention on tensor cores. Equations: softmax_attention.cu; M: the precision
// (softmax_attention_fragments.cuh).
//
// Forward: a block of 8 warps owns 128 queries, 16 a warp, and walks over tiles of keys: s = q kᵀ in
// registers, running maximum and sum, and p as the left operand of y += p v without leaving registers. Tiles
// are read from global memory into registers while the tensor cores work on the tile before, and converted on
// the way to shared memory. Backward: a block owns 128 keys, 16 a warp, and walks over tiles of queries with
// everything transposed: sᵀ = k qᵀ, dpᵀ = v dyᵀ, then pᵀ and dsᵀ are left operands of dv += pᵀ dy, dk += dsᵀ
// q from registers, and dq = ds k through shared memory. dq of a tile is written for each block of keys on
// its own and summed by attention_sum_kernel in order: one exponential and one mask a pair, the least number
// of products (3N + 2P), no atomics.
//
// Floor (H200, B·H·T²/2 pairs). CIFAR (200, 1024, N 16, P 128): 30 GFLOP forward, 64 backward, 105 M
// exponentials at 16 a clock and SM = 28 µs; operands 0.24 GB forward, 0.47 GB backward = 58 and 112 µs
// at 4.2 TB/s; shared memory: a warp's 16 rows read every right operand, 9 KB a 32 keys and warp forward = 72
// µs, 36 KB a 64 queries backward = 150 µs in bf16, twice that in TF32. dq's parts: 59 MB written and read.
// IMDB (24, 4096, 16, 32): 19 and 45 GFLOP, 201 M exponentials = 56 µs, 50 M Philox calls of ~90 instructions
// = 160 µs in each direction. MQAR (64, 512, 128, 128): 4.3 and 10.7 GFLOP.
#include "tensor/kernels/softmax_attention_fragments.cuh"

#ifdef EIGENTRACE_WITH_CUDA
namespace eigentrace::kernels {

constexpr int attention_threads = 256, attention_warps = 8;

/// Which operands can be read and written in vectors of 4 (2: y, dk, dv).
struct AttentionAccess {
  bool q, k, v, y, dy, dk, dv;
};

/// Rows of one batch entry and head.
struct AttentionRows {
  float* data;
  int64_t stride;
  int rows, columns;
  bool vectors;
  __device__ AttentionRows(const Heads<float>& x, int64_t b, int64_t h, int64_t length, int64_t width,
                           bool in_vectors)
      : data(x.data + b * x.batch + h * x.head),
        stride(x.time),
        rows(static_cast<int>(length)),
        columns(static_cast<int>(width)),
        vectors(in_vectors) {}

  __device__ void store(int row, int column, float a, float b) const {
    if (row >= rows) return;
    float* to = data + row * stride + column;
    if (vectors) {
      if (column < columns) *reinterpret_cast<float2*>(to) = make_float2(a, b);
    } else {
      if (column < columns) to[0] = a;
      if (column + 1 < columns) to[1] = b;
    }
  }
};

/// A tile on its way from global to shared memory, zeros outside.
template <int rows, int width>
struct AttentionTile {
  static constexpr int row_pieces = width / 4, step = attention_threads / row_pieces,
                       each = (rows + step - 1) / step;
  float4 x[each];

  __device__ void load(const AttentionRows& from, int row0) {
    const int own = static_cast<int>(threadIdx.x) / row_pieces,
              column = static_cast<int>(threadIdx.x) % row_pieces * 4;
    const float* p = from.data + (row0 + own) * from.stride + column;
    const int left = column < from.columns ? min(rows, from.rows - row0) - own : 0;  // rows from own on
    const int64_t stride = step * from.stride;
#pragma unroll
    for (int u = 0; u < each; ++u) x[u] = make_float4(0, 0, 0, 0);
    if (from.vectors) {
#pragma unroll
      for (int u = 0; u < each; ++u, p += stride)
        if (u * step < left) x[u] = *reinterpret_cast<const float4*>(p);
    } else {
#pragma unroll
      for (int u = 0; u < each; ++u, p += stride)
        if (u * step < left) {
          x[u].x = p[0];
          if (column + 1 < from.columns) x[u].y = p[1];
          if (column + 2 < from.columns) x[u].z = p[2];
          if (column + 3 < from.columns) x[u].w = p[3];
        }
    }
  }
  template <class M>
  __device__ void store(typename M::Element* to) const {
    constexpr int pitch = width + M::pad;
    const int own = static_cast<int>(threadIdx.x) / row_pieces;
    typename M::Element* p = to + own * pitch + static_cast<int>(threadIdx.x) % row_pieces * 4;
#pragma unroll
    for (int u = 0; u < each; ++u)
      if (rows % step == 0 || own + u * step < rows) M::put(p + u * step * pitch, x[u]);
  }
};

/// What a block works on: 64 sequences together (their operands stay in the L2 cache), the longest rows
/// first.
struct AttentionTurn {
  int64_t item;
  int turn;
  __device__ AttentionTurn(int64_t items, int turns) {
    const int64_t group = blockIdx.x / (int64_t{64} * turns), in = blockIdx.x % (int64_t{64} * turns);
    const int64_t members = items - 64 * group < 64 ? items - 64 * group : 64;
    item = 64 * group + in % members;
    turn = static_cast<int>(in / members);
  }
};

/// [16 × 8 n] += 16 rows of `left` times rows of `right`, both stored with their depth along the row.
template <class M, int depth, int n>
__device__ __forceinline__ void attention_row_products(float (&s)[n][4], const typename M::Element* left,
                                                       const typename M::Element* right) {
  constexpr int pitch = depth + M::pad;
#pragma unroll
  for (int k = 0; k < depth; k += 16) {
    const auto a = M::load(left + k, pitch);
#pragma unroll
    for (int c = 0; c < n; c += 2) M::mma(s[c], s[c + 1], a, M::load_rows(right + 8 * c * pitch + k, pitch));
  }
}
/// out += p x: p in registers, x stored [depth][column].
template <class M, int width, int n>
__device__ __forceinline__ void attention_add_rows(float (&out)[width / 8][4], const float (&p)[n][4],
                                                   const typename M::Element* x) {
  constexpr int pitch = width + M::pad;
#pragma unroll
  for (int k = 0; k < n; k += 2) {
    const auto a = M::from(p[k], p[k + 1]);
#pragma unroll
    for (int c = 0; c < width / 8; c += 2)
      M::mma(out[c], out[c + 1], a, M::load_columns(x + 8 * k * pitch + 8 * c, pitch));
  }
}

/// What a mask leaves of rows i and i + 8 (g, g + 8 of a block of 16) times columns of two tiles of 8.
__device__ __forceinline__ void attention_drop(float (&near)[4], float (&far)[4], const AttentionMask& mask,
                                               const uint32_t (&words)[4]) {
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    if (!(e % 2 ? mask.keeps_high(words[e / 2]) : mask.keeps_low(words[e / 2]))) near[e] = 0;
    if (!(e % 2 ? mask.keeps_high(words[2 + e / 2]) : mask.keeps_low(words[2 + e / 2]))) far[e] = 0;
  }
}

/// words[2 c + r] of a block of 16 queries from i0 and 16 keys from j0, transposed: its halves decide on
/// queries 8 c + 2 t and 8 c + 2 t + 1 of key g + 8 r. A call serves two keys: lanes g and g ^ 1 draw one
/// each and exchange halves.
__device__ __forceinline__ void attention_words_transposed(uint32_t (&words)[4], const AttentionMask& mask,
                                                           int64_t i0, int64_t j0) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const bool odd = g % 2;
  const Philox4 w = mask.words(i0 + 2 * t + g % 2, j0 + g / 2 * 2);
  const uint32_t give = odd ? 0x5410u : 0x7632u, even_places = odd ? 0x3254u : 0x5410u,
                 odd_places = odd ? 0x3276u : 0x7610u;
#pragma unroll
  for (int r = 0; r < 2; ++r) {  // words 2 r and 2 r + 1 of a call: queries i and i + 8 of keys from j + 8 r
    const uint32_t other = __shfl_xor_sync(0xFFFFFFFFu, __byte_perm(w.x[2 * r], w.x[2 * r + 1], give), 4);
    words[r] = __byte_perm(w.x[2 * r], other, even_places);
    words[2 + r] = __byte_perm(w.x[2 * r + 1], other, odd_places);
  }
}

template <class M, int N, int P, int keys>
constexpr size_t attention_shared = sizeof(typename M::Element) *
                                    ((attention_rows + keys) * (N + M::pad) + keys * (P + M::pad));

template <class M, int N, int P, int keys, bool drops>
__global__ void __launch_bounds__(attention_threads, M::forward_blocks)
    attention_mma_kernel(AttentionOperands<float> a, AttentionAccess access) {
  constexpr int tiles = keys / 8;
  auto* q_s = dynamic_shared<typename M::Element>();
  auto *k_s = q_s + attention_rows * (N + M::pad), *v_s = k_s + keys * (N + M::pad);
  const int length = static_cast<int>(a.size.T), turns = (length + attention_rows - 1) / attention_rows;
  const AttentionTurn at(a.size.B * a.size.H, turns);
  const int64_t b = at.item / a.size.H, h = at.item % a.size.H;
  const AttentionRows q(a.q, b, h, length, a.size.N, access.q), k(a.k, b, h, length, a.size.N, access.k),
      v(a.v, b, h, length, a.size.P, access.v);
  const AttentionMask mask(a.mask, at.item, length);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int g = lane / 4, t = lane % 4;
  const int i0 = (turns - 1 - at.turn) * attention_rows, first = i0 + 16 * warp;
  const float factor = a.scale * 1.44269504f;

  AttentionTile<keys, N> next_k;
  AttentionTile<keys, P> next_v;
  {
    AttentionTile<attention_rows, N> own;
    own.load(q, i0);
    next_k.load(k, 0);
    own.template store<M>(q_s);
    next_k.template store<M>(k_s);
  }
  float out[P / 8][4] = {}, largest[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  const int end = i0 + attention_rows < length ? i0 + attention_rows : length;
  for (int j0 = 0; j0 < end; j0 += keys) {
    next_v.load(v, j0);
    __syncthreads();
    float s[tiles][4] = {};
    const bool sees = j0 <= first + 15;
    if (sees) {
      attention_row_products<M, N>(s, q_s + 16 * warp * (N + M::pad), k_s);
      if (j0 + keys - 1 > first) {
#pragma unroll
        for (int c = 0; c < tiles; ++c)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            if (j0 + 8 * c + 2 * t + e % 2 > first + g + e / 2 * 8) s[c][e] = -INFINITY;
      }
      float fade[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float top = largest[r], total = 0;
#pragma unroll
        for (int c = 0; c < tiles; ++c) top = fmaxf(top, fmaxf(s[c][2 * r], s[c][2 * r + 1]));
        top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, 2));
        fade[r] = attention_exp2((largest[r] - top) * factor);
        const float shift = -top * factor;
#pragma unroll
        for (int c = 0; c < tiles; ++c)
#pragma unroll
          for (int e = 2 * r; e < 2 * r + 2; ++e)
            total += s[c][e] = attention_exp2(fmaf(s[c][e], factor, shift));
        sum[r] = sum[r] * fade[r] + total;
        largest[r] = top;
      }
      if (__any_sync(0xFFFFFFFFu, fade[0] != 1 || fade[1] != 1)) {
#pragma unroll
        for (int c = 0; c < P / 8; ++c)
#pragma unroll
          for (int e = 0; e < 4; ++e) out[c][e] *= fade[e / 2];
      }
      if (drops)
#pragma unroll
        for (int c = 0; c < tiles; c += 2)
          attention_drop(s[c], s[c + 1], mask, mask.words(first + g, j0 + 8 * c + 2 * t).x);
    }
    next_v.template store<M>(v_s);
    __syncthreads();
    const bool more = j0 + keys < end;
    if (more) next_k.load(k, j0 + keys);
    if (sees) attention_add_rows<M, P>(out, s, v_s);
    if (more) next_k.template store<M>(k_s);
  }

  const AttentionRows y(a.y, b, h, length, a.size.P, access.y);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sum[r] += __shfl_xor_sync(0xFFFFFFFFu, sum[r], 1);
    sum[r] += __shfl_xor_sync(0xFFFFFFFFu, sum[r], 2);
    const int i = first + g + 8 * r;
    const float inverse = (drops ? static_cast<float>(a.mask.keep_scale) : 1.0f) / sum[r];
    if (t == 0 && i < length) a.lse[(b * length + i) * a.size.H + h] = largest[r] * a.scale + logf(sum[r]);
#pragma unroll
    for (int c = 0; c < P / 8; ++c)
      y.store(i, 8 * c + 2 * t, out[c][2 * r] * inverse, out[c][2 * r + 1] * inverse);
  }
}

template <class M, int N, int P, int queries>
constexpr size_t attention_backward_shared = sizeof(typename M::Element) *
                                                 ((attention_rows + queries) * (N + P + 2 * M::pad) +
                                                  attention_rows * (queries + M::pad)) +
                                             queries * sizeof(float2);

template <class M, int N, int P, int queries, bool drops>
__global__ void __launch_bounds__(attention_threads, P <= 32 ? M::forward_blocks : 1)
    attention_mma_backward_kernel(AttentionOperands<float> a, AttentionGradients<float> grad,
                                  AttentionAccess access, AttentionParts parts) {
  constexpr int tiles = queries / 8, np = N + M::pad, pp = P + M::pad, sp = queries + M::pad;
  auto* stats_s = dynamic_shared<float2>();  // lse log₂e, delta
  auto* k_s = reinterpret_cast<typename M::Element*>(stats_s + queries);
  auto *v_s = k_s + attention_rows * np, *q_s = v_s + attention_rows * pp, *dy_s = q_s + queries * np,
       *ds_s = dy_s + queries * pp;
  const int length = static_cast<int>(a.size.T);
  const AttentionTurn at(a.size.B * a.size.H, parts.blocks);
  const int64_t b = at.item / a.size.H, h = at.item % a.size.H;
  const AttentionRows q(a.q, b, h, length, a.size.N, access.q), k(a.k, b, h, length, a.size.N, access.k),
      v(a.v, b, h, length, a.size.P, access.v), dy(grad.dy, b, h, length, a.size.P, access.dy);
  const AttentionMask mask(a.mask, at.item, length);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int g = lane / 4, t = lane % 4;
  const int j0 = (parts.first_block + at.turn) * attention_rows, first = j0 + 16 * warp;
  const float factor = a.scale * 1.44269504f, keep = drops ? static_cast<float>(a.mask.keep_scale) : 1.0f;

  {
    AttentionTile<attention_rows, N> own;
    own.load(k, j0);
    own.template store<M>(k_s);
  }
  {
    AttentionTile<attention_rows, P> own;
    own.load(v, j0);
    own.template store<M>(v_s);
  }
  AttentionTile<queries, N> next_q;
  AttentionTile<queries, P> next_dy;
  next_q.load(q, j0);
  next_dy.load(dy, j0);
  float dk[N / 8][4] = {}, dv[P / 8][4] = {};
  for (int i0 = j0; i0 < length; i0 += queries) {
    next_q.template store<M>(q_s);
    next_dy.template store<M>(dy_s);
    if (threadIdx.x < queries) {  // p of rows after the last is 2^−∞
      const int i = i0 + static_cast<int>(threadIdx.x);
      stats_s[threadIdx.x] = i < length ? make_float2(a.lse[(b * length + i) * a.size.H + h] * 1.44269504f,
                                                      grad.delta[at.item * length + i])
                                        : make_float2(INFINITY, 0);
    }
    __syncthreads();
    if (i0 + queries < length) next_q.load(q, i0 + queries), next_dy.load(dy, i0 + queries);
    float s[tiles][4] = {};
    if (i0 + queries > first) {
      attention_row_products<M, N>(s, k_s + 16 * warp * np, q_s);
#pragma unroll
      for (int c = 0; c < tiles; ++c) {
        const float4 stats = *reinterpret_cast<const float4*>(stats_s + 8 * c + 2 * t);
#pragma unroll
        for (int e = 0; e < 4; ++e)
          s[c][e] = attention_exp2(fmaf(s[c][e], factor, -(e % 2 ? stats.z : stats.x)));
      }
      if (i0 < first + 15) {
#pragma unroll
        for (int c = 0; c < tiles; ++c)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            if (first + g + e / 2 * 8 > i0 + 8 * c + 2 * t + e % 2) s[c][e] = 0;
      }
      float d[tiles][4] = {};
      attention_row_products<M, P>(d, v_s + 16 * warp * pp, dy_s);
      uint32_t words[4] = {};
#pragma unroll
      for (int c = 0; c < tiles; ++c) {
        if (drops && c % 2 == 0) attention_words_transposed(words, mask, i0 + 8 * c, first);
        const float4 stats = *reinterpret_cast<const float4*>(stats_s + 8 * c + 2 * t);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const uint32_t word = words[c % 2 * 2 + e / 2];
          const float m = (e % 2 ? mask.keeps_high(word) : mask.keeps_low(word)) ? keep : 0.0f;
          const float p = s[c][e];
          s[c][e] = drops ? p * m : p;
          d[c][e] = p * ((drops ? d[c][e] * m : d[c][e]) - (e % 2 ? stats.w : stats.y));
        }
      }
      if (grad.wants_v) attention_add_rows<M, P>(dv, s, dy_s);
      if (grad.wants_k) attention_add_rows<M, N>(dk, d, q_s);
#pragma unroll
      for (int c = 0; c < tiles; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e) s[c][e] = d[c][e];
    }
    if (grad.wants_q)
#pragma unroll
      for (int c = 0; c < tiles; ++c)
#pragma unroll
        for (int r = 0; r < 2; ++r)
          M::put(ds_s + (16 * warp + g + 8 * r) * sp + 8 * c + 2 * t, s[c][2 * r], s[c][2 * r + 1]);
    __syncthreads();
    if (grad.wants_q) {
      constexpr int row_pieces = queries / 16, column_pieces = N / 16;
      constexpr int each = row_pieces * column_pieces / attention_warps;
      constexpr int rows = each < 1 ? 1 : each < row_pieces ? each : row_pieces;  // of one right operand
      for (int u = warp; u < row_pieces / rows * column_pieces; u += attention_warps) {
        const int row = u % (row_pieces / rows) * 16 * rows, column = u / (row_pieces / rows) * 16;
        float d[rows][2][4] = {};
#pragma unroll
        for (int key = 0; key < attention_rows; key += 16) {
          const auto right = M::load_columns(k_s + key * np + column, np);
#pragma unroll
          for (int m = 0; m < rows; ++m)
            M::mma(d[m][0], d[m][1], M::load_transposed(ds_s + key * sp + row + 16 * m, sp), right);
        }
        const int64_t part = at.turn * a.size.B * a.size.H + at.item;
#pragma unroll
        for (int m = 0; m < rows; ++m)
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const int i = i0 + row + 16 * m + g + 8 * r;
            float* to = parts.data + (part * length + i) * N + column + 2 * t;
            if (i >= length) continue;
            *reinterpret_cast<float2*>(to) = make_float2(d[m][0][2 * r], d[m][0][2 * r + 1]);
            *reinterpret_cast<float2*>(to + 8) = make_float2(d[m][1][2 * r], d[m][1][2 * r + 1]);
          }
      }
    }
  }
  const AttentionRows to_k(grad.dk, b, h, length, a.size.N, access.dk),
      to_v(grad.dv, b, h, length, a.size.P, access.dv);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int j = first + g + 8 * r;
    if (grad.wants_k)
#pragma unroll
      for (int c = 0; c < N / 8; ++c)
        to_k.store(j, 8 * c + 2 * t, dk[c][2 * r] * a.scale, dk[c][2 * r + 1] * a.scale);
    if (grad.wants_v)
#pragma unroll
      for (int c = 0; c < P / 8; ++c) to_v.store(j, 8 * c + 2 * t, dv[c][2 * r], dv[c][2 * r + 1]);
  }
}

/// body.operator()<N, P, keys, queries>() of the instance that a plan names.
template <class Body>
void with_attention_sizes(const AttentionPlan& plan, Body&& body) {
  if (plan.N == 16 && plan.P == 32) return body.template operator()<16, 32, 64, 32>();
  if (plan.N == 32 && plan.P == 32) return body.template operator()<32, 32, 64, 32>();
  if (plan.N == 16 && plan.P == 128) return body.template operator()<16, 128, 32, 64>();
  if (plan.N == 64 && plan.P == 64) return body.template operator()<64, 64, 64, 64>();
  body.template operator()<128, 128, 32, 32>();
}

inline AttentionAccess access_of(const AttentionOperands<float>& a, const AttentionGradients<float>& g) {
  const auto whole = [](const Heads<float>& x, int64_t columns, int64_t n) {
    return reinterpret_cast<uintptr_t>(x.data) % (4 * static_cast<uintptr_t>(n)) == 0 &&
           (x.batch % n | x.time % n | x.head % n | columns % n) == 0;
  };
  const int64_t N = a.size.N, P = a.size.P;
  return {whole(a.q, N, 4),  whole(a.k, N, 4),  whole(a.v, P, 4), whole(a.y, P, 2),
          whole(g.dy, P, 4), whole(g.dk, N, 2), whole(g.dv, P, 2)};
}

template <class M>
void attention_mma(const Context& ctx, const AttentionPlan& plan, const AttentionOperands<float>& a) {
  const int64_t blocks = a.size.B * a.size.H * ((a.size.T + attention_rows - 1) / attention_rows);
  with_attention_sizes(plan, [&]<int N, int P, int keys, int queries>() {
    launch(ctx,
           a.drops ? attention_mma_kernel<M, N, P, keys, true> : attention_mma_kernel<M, N, P, keys, false>,
           static_cast<unsigned>(blocks), attention_threads, attention_shared<M, N, P, keys>, a,
           access_of(a, {}));
  });
}

template <class M>
void attention_mma_backward(const Context& ctx, const AttentionPlan& plan, const AttentionOperands<float>& a,
                            const AttentionGradients<float>& g, const AttentionParts& parts) {
  with_attention_sizes(plan, [&]<int N, int P, int keys, int queries>() {
    launch(ctx,
           a.drops ? attention_mma_backward_kernel<M, N, P, queries, true>
                   : attention_mma_backward_kernel<M, N, P, queries, false>,
           static_cast<unsigned>(a.size.B * a.size.H * parts.blocks), attention_threads,
           attention_backward_shared<M, N, P, queries>, a, g, access_of(a, g), parts);
  });
}

}  // namespace eigentrace::kernels
#endif
