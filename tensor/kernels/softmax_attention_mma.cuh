#pragma once
// What the tensor-core kernels of softmax attention share. Equations: softmax_attention.cu; M: the precision
// (softmax_attention_fragments.cuh). Kernels: softmax_attention_forward.cuh and
// softmax_attention_backward.cuh.
#include "tensor/kernels/softmax_attention_fragments.cuh"

#ifdef EIGENTRACE_WITH_CUDA
namespace eigentrace::kernels {

/// Which operands can be read and written in vectors of 4 (2: y, dk, dv).
struct AttentionAccess {
  bool q, k, v, y, dy, dq, dk, dv;
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

  /// Columns 2 t, 2 t + 1 of each 8 of `row`, in pairs: x[c][part], x[c][part + 1] times `factor`.
  template <int n>
  __device__ __forceinline__ void store(int row, const float (&x)[n][4], int part, float factor) const {
    if (row >= rows) return;
    const int t = static_cast<int>(threadIdx.x) % 4 * 2;
    float* to = data + row * stride + t;
    if (vectors && columns == 8 * n) {
#pragma unroll
      for (int c = 0; c < n; ++c)
        *reinterpret_cast<float2*>(to + 8 * c) = make_float2(x[c][part] * factor, x[c][part + 1] * factor);
      return;
    }
    const int left = columns - t;
#pragma unroll
    for (int c = 0; c < n; ++c) {
      if (8 * c < left) to[8 * c] = x[c][part] * factor;
      if (8 * c + 1 < left) to[8 * c + 1] = x[c][part + 1] * factor;
    }
  }
};

/// A tile on its way from global memory to `raw` in shared memory and, rounded, to its place: without
/// registers, and without a barrier, since a thread rounds what it copied. Zeros outside. 32-bit elements are
/// rounded where they are, and need no `raw`.
template <class M, int rows, int width, int threads>
struct AttentionCopy {
  using Element = typename M::Element;
  static constexpr bool in_place = sizeof(Element) == 4;
  static constexpr int row_pieces = width / 4, step = threads / row_pieces, each = (rows + step - 1) / step;
  static constexpr int pitch = width + M::pad, raw_pitch = in_place ? pitch : width;

  __device__ static void start(float* raw, Element* place, const AttentionRows& from, int row0) {
    if constexpr (in_place) raw = place;
    const int own = static_cast<int>(threadIdx.x) / row_pieces,
              column = static_cast<int>(threadIdx.x) % row_pieces * 4;
    const float* p = from.data + (row0 + own) * from.stride + column;
    float* to = raw + own * raw_pitch + column;
    const int64_t stride = step * from.stride;
    if (from.vectors && row0 + rows <= from.rows && from.columns == width) {
#pragma unroll
      for (int u = 0; u < each; ++u, p += stride)
        if (rows % step == 0 || own + u * step < rows) copy_async_16(to + u * step * raw_pitch, p);
      return;
    }
#pragma unroll 1
    for (int u = 0; u < each; ++u, p += stride) {
      if (own + u * step >= rows) break;
      const int left = row0 + own + u * step < from.rows ? from.columns - column : 0;
      if (from.vectors)
        copy_async_16(to + u * step * raw_pitch, p, left > 0);
      else
        for (int c = 0; c < 4; ++c) copy_async_4(to + u * step * raw_pitch + c, p + c, c < left);
    }
  }
  /// After copy_wait; times `factor`.
  __device__ static void finish(const float* raw, Element* place, float factor = 1) {
    if constexpr (in_place) raw = place;
    const int own = static_cast<int>(threadIdx.x) / row_pieces,
              column = static_cast<int>(threadIdx.x) % row_pieces * 4;
    const float* from = raw + own * raw_pitch + column;
    Element* p = place + own * pitch + column;
    // the compiler would not read past a write: it cannot tell that they are apart
    constexpr int together = each < 8 ? each : 8;
#pragma unroll
    for (int u0 = 0; u0 < each; u0 += together) {
      float4 x[together];
#pragma unroll
      for (int u = u0; u < u0 + together && u < each; ++u)
        if (rows % step == 0 || own + u * step < rows)
          x[u - u0] = *reinterpret_cast<const float4*>(from + u * step * raw_pitch);
#pragma unroll
      for (int u = u0; u < u0 + together && u < each; ++u)
        if (rows % step == 0 || own + u * step < rows) {
          const float4 f = x[u - u0];
          M::put(p + u * step * pitch, make_float4(f.x * factor, f.y * factor, f.z * factor, f.w * factor));
        }
    }
  }
};

/// Rows place(0), place(1), …, `rows` of them, times `factor`, into shared memory, through registers, up to
/// 16 accesses of a thread at a time.
template <class M, int rows, int width, int threads, class Place>
__device__ __forceinline__ void attention_stage(typename M::Element* to, const AttentionRows& from,
                                                Place&& place, float factor = 1) {
  constexpr int row_pieces = width / 4, step = threads / row_pieces, pitch = width + M::pad;
  constexpr int each = (rows + step - 1) / step, together = each < 16 ? each : 16;
  const int own = static_cast<int>(threadIdx.x) / row_pieces,
            column = static_cast<int>(threadIdx.x) % row_pieces * 4;
#pragma unroll 1
  for (int u0 = 0; u0 < each; u0 += together) {
    float4 x[together];
#pragma unroll
    for (int u = 0; u < together; ++u) {
      const int row = place(own + (u0 + u) * step), left = row < from.rows ? from.columns - column : 0;
      const float* p = from.data + row * from.stride + column;
      x[u] = make_float4(0, 0, 0, 0);
      if (from.vectors) {
        if (left > 0) x[u] = *reinterpret_cast<const float4*>(p);
      } else {
        if (left > 0) x[u].x = p[0];
        if (left > 1) x[u].y = p[1];
        if (left > 2) x[u].z = p[2];
        if (left > 3) x[u].w = p[3];
      }
    }
#pragma unroll
    for (int u = 0; u < together; ++u)
      if (own + (u0 + u) * step < rows)
        M::put(to + (own + (u0 + u) * step) * pitch + column,
               make_float4(x[u].x * factor, x[u].y * factor, x[u].z * factor, x[u].w * factor));
  }
}

/// What a block works on: up to 64 sequences together (their operands stay in the L2 cache), in groups of
/// equal size; of each group the longest rows first, so that the last blocks are short.
struct AttentionTurn {
  int64_t item;
  int turn;
  __device__ AttentionTurn(int64_t items, int turns, int64_t index = blockIdx.x) {
    const int64_t most = (items + (items + 63) / 64 - 1) / ((items + 63) / 64);
    const int64_t group = index / (most * turns), in = index % (most * turns);
    const int64_t members = items - most * group < most ? items - most * group : most;
    item = most * group + in % members;
    turn = static_cast<int>(in / members);
  }
};

/// A warp's rows as left operands; stays: in registers throughout, for 16 columns.
template <class M, int depth, int groups, bool stays = false>
struct AttentionLeft {
  static_assert(!stays || depth == 16);
  static constexpr int pitch = depth + M::pad;
  const typename M::Element* rows;
  typename M::Fragment kept[stays ? groups : 1];

  __device__ __forceinline__ explicit AttentionLeft(const typename M::Element* x) : rows(x) {
    if constexpr (stays)
#pragma unroll
      for (int m = 0; m < groups; ++m) kept[m] = M::load(rows + 16 * m * pitch, pitch);
  }
  __device__ __forceinline__ typename M::Fragment at(int m, int k) const {
    if constexpr (stays) return kept[m];
    return M::load(rows + 16 * m * pitch + k, pitch);
  }
};

/// s [16 groups × 8 n] = start(m, c) + rows of `left` times rows of `right`, stored with their depth along
/// the row. Where a precision does not start sums so, the start is not added. between(u): what a warp does
/// beside the u-th of attention_row_steps parts of the products, whose instructions leave five of six issue
/// slots free.
template <int depth, int n>
constexpr int attention_row_steps = depth / 16 * (n / 2);
template <class M, int depth, int n, int groups, bool stays, class Start, class Between>
__device__ __forceinline__ void attention_row_products(float (&s)[groups][n][4],
                                                       const AttentionLeft<M, depth, groups, stays>& left,
                                                       const typename M::Element* right, Start&& start,
                                                       Between&& between) {
  constexpr int pitch = depth + M::pad;
  if constexpr (!M::starts)
#pragma unroll
    for (int m = 0; m < groups; ++m)
#pragma unroll
      for (int c = 0; c < n; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e) s[m][c][e] = 0;
#pragma unroll
  for (int k = 0; k < depth; k += 16) {
    typename M::Fragment a[groups];
#pragma unroll
    for (int m = 0; m < groups; ++m) a[m] = left.at(m, k);
#pragma unroll
    for (int c = 0; c < n; c += 2) {
      const auto b = M::load_rows(right + 8 * c * pitch + k, pitch);
#pragma unroll
      for (int m = 0; m < groups; ++m) {
        if constexpr (M::starts)
          if (k == 0) {
            M::mma(s[m][c], s[m][c + 1], a[m], b, start(m, c), start(m, c + 1));
            continue;
          }
        M::mma(s[m][c], s[m][c + 1], a[m], b);
      }
      between(k / 16 * (n / 2) + c / 2);
    }
  }
}
template <class M, int depth, int n, int groups, bool stays, class Start>
__device__ __forceinline__ void attention_row_products(float (&s)[groups][n][4],
                                                       const AttentionLeft<M, depth, groups, stays>& left,
                                                       const typename M::Element* right, Start&& start) {
  attention_row_products<M, depth>(s, left, right, start, [](int) {});
}
/// Results as left operands.
template <class M, int n, int groups>
__device__ __forceinline__ void attention_fragments(typename M::Fragment (&f)[groups][n / 2],
                                                    const float (&p)[groups][n][4]) {
#pragma unroll
  for (int m = 0; m < groups; ++m)
#pragma unroll
    for (int c = 0; c < n; c += 2) f[m][c / 2] = M::from(p[m][c], p[m][c + 1]);
}
/// out += p x: p in registers, x stored [depth][column]. between(u): what a warp does beside the u-th of
/// attention_add_steps parts of the products.
template <int width, int n>
constexpr int attention_add_steps = n* width / 16;
template <class M, int width, int n, int groups, class Between>
__device__ __forceinline__ void attention_add_rows(float (&out)[groups][width / 8][4],
                                                   const typename M::Fragment (&p)[groups][n],
                                                   const typename M::Element* x, Between&& between) {
  constexpr int pitch = width + M::pad;
#pragma unroll
  for (int k = 0; k < n; ++k) {
#pragma unroll
    for (int c = 0; c < width / 8; c += 2) {
      const auto b = M::load_columns(x + 16 * k * pitch + 8 * c, pitch);
#pragma unroll
      for (int m = 0; m < groups; ++m) M::mma(out[m][c], out[m][c + 1], p[m][k], b);
      between(k * (width / 16) + c / 2);
    }
  }
}
template <class M, int width, int n, int groups>
__device__ __forceinline__ void attention_add_rows(float (&out)[groups][width / 8][4],
                                                   const typename M::Fragment (&p)[groups][n],
                                                   const typename M::Element* x) {
  attention_add_rows<M, width>(out, p, x, [](int) {});
}

/// Which of a block's warps owns which rows: those that share a scheduler own early and late ones.
__device__ __forceinline__ int attention_own(int warp) {
  return warp / 4 % 2 ? warp / 4 * 4 + 3 - warp % 4 : warp;
}

/// words[2 c + r] of 16 queries and 16 keys, transposed: its halves decide on queries 8 c + 2 t and
/// 8 c + 2 t + 1 of key g + 8 r. A call serves two keys: lanes g and g ^ 1 draw one each (w, of query
/// 2 t + g % 2 and key g / 2 * 2) and exchange halves.
__device__ __forceinline__ void attention_transpose(uint32_t (&words)[4], const Philox4& w) {
  const bool odd = threadIdx.x / 4 % 2;
  const uint32_t give = odd ? 0x5410u : 0x7632u, even_places = odd ? 0x3254u : 0x5410u,
                 odd_places = odd ? 0x3276u : 0x7610u;
#pragma unroll
  for (int r = 0; r < 2; ++r) {  // words 2 r and 2 r + 1 of a call: queries i and i + 8 of keys from j + 8 r
    const uint32_t other = __shfl_xor_sync(0xFFFFFFFFu, __byte_perm(w.x[2 * r], w.x[2 * r + 1], give), 4);
    words[r] = __byte_perm(w.x[2 * r], other, even_places);
    words[2 + r] = __byte_perm(w.x[2 * r + 1], other, odd_places);
  }
}

/// The shapes of an instance.
template <class M, int N, int P>
struct AttentionShapes {
  static constexpr AttentionShape forward = attention_forward_shape(M::precision, N, P),
                                  backward = attention_backward_shape(M::precision, N, P);
};

/// body.operator()<N, P>() of the instance that a plan names.
template <class Body>
void with_attention_sizes(const AttentionPlan& plan, Body&& body) {
  if (plan.N == 16 && plan.P == 32) return body.template operator()<16, 32>();
  if (plan.N == 32 && plan.P == 32) return body.template operator()<32, 32>();
  if (plan.N == 16 && plan.P == 128) return body.template operator()<16, 128>();
  if (plan.N == 64 && plan.P == 64) return body.template operator()<64, 64>();
  body.template operator()<128, 128>();
}

inline AttentionAccess access_of(const AttentionOperands<float>& a, const AttentionGradients<float>& g) {
  const auto whole = [](const Heads<float>& x, int64_t columns, int64_t n) {
    return reinterpret_cast<uintptr_t>(x.data) % (4 * static_cast<uintptr_t>(n)) == 0 &&
           (x.batch % n | x.time % n | x.head % n | columns % n) == 0;
  };
  const int64_t N = a.size.N, P = a.size.P;
  return {whole(a.q, N, 4),  whole(a.k, N, 4),  whole(a.v, P, 4),  whole(a.y, P, 2),
          whole(g.dy, P, 4), whole(g.dq, N, 4), whole(g.dk, N, 2), whole(g.dv, P, 2)};
}

}  // namespace eigentrace::kernels
#endif
