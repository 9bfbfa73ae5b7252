#pragma once
// Operands of warp products from shared memory, for every precision, in one layout of results: that of
// mma.m16n8 (tensor/mma.h), lane = 4 g + t.
//
// Matrices lie in rows of ld floats, a multiple of 32 known to the compiler; element (r, c) at
// r·ld + (c ^ swizzle(r)): neighbouring rows differ in the 16-byte groups' order, so that reading along rows
// (pairs of 8 rows × 4 lanes) and down columns (8 columns of 4 row pairs) meets every bank once. Which k goes
// to which slot of a product is free as long as both operands agree: here slots t and t + 4 hold k = 2t and
// 2t + 1, one 8-byte load a row. Within 32 columns a lane has four places along a row and four in each of two
// rows down a column; all else of an address is known to the compiler, or moves a pointer once in many loads.
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/context.h"
#include "tensor/mma.h"

namespace eigentrace::kernels {
namespace {

/// What row r is xored with: bits r₂, r₁, r₀ ^ r₂ of its 16-byte group.
__device__ __forceinline__ int swizzle(int r) {
  return (r >> 2 & 1) << 2 | (r >> 1 & 1) << 3 | ((r ^ r >> 2) & 1) << 4;
}
__device__ __forceinline__ int swizzled(int r, int c, int ld) { return r * ld + (c ^ swizzle(r)); }

struct Lane {
  int g, t, of_g;
  int along[4];         // columns 8 i + 2t of row g
  int even[4], odd[4];  // columns 8 i + g of rows 2t and 2t + 1
  __device__ __forceinline__ Lane()
      : g(static_cast<int>(threadIdx.x) % 32 / 4), t(static_cast<int>(threadIdx.x) % 4), of_g(swizzle(g)) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      along[i] = (8 * i + 2 * t) ^ of_g;
      even[i] = (8 * i + g) ^ swizzle(2 * t), odd[i] = (8 * i + g) ^ swizzle(2 * t + 1);
    }
  }
};

__device__ __forceinline__ float2 two_at(const float* p) { return *reinterpret_cast<const float2*>(p); }

/// Fragments of A [16 × depth] and B [depth × 8], i eights of k (or j eights of B's columns) after p, within
/// 32 for `rows`: stored with k along the row, p at the first row. `columns`: stored with k as the row, p at
/// row k. p is at a multiple of 32 columns, to which flip adds 8, 16 or 24 where the tile fits into the 32.
/// `far`: a matrix in global memory, without swizzles. a_of: elements value(0 or 1 for row g or g + 8, k);
/// b_first: B's first column is 1, the others 0.
template <Precision precision>
struct Fragments;

/// Plain multiply-adds in the layout of the tensor cores.
template <>
struct Fragments<Precision::fp32> {
  static constexpr int depth = 8;
  struct A {
    float at[2][8];  // rows g, g + 8
  };
  struct B {
    float at[2][8];  // columns 2t, 2t + 1
  };
  static __device__ __forceinline__ void row(float (&to)[8], const float* p, int i, int of) {
#pragma unroll
    for (int k = 0; k < 8; k += 4) {
      const float4 x = *reinterpret_cast<const float4*>(p + ((8 * i + k) ^ of));
      to[k] = x.x, to[k + 1] = x.y, to[k + 2] = x.z, to[k + 3] = x.w;
    }
  }
  template <int ld>
  static __device__ __forceinline__ void a_rows(A& a, const float* p, int i, int flip, const Lane& lane) {
    row(a.at[0], p + lane.g * ld, i, lane.of_g ^ flip),
        row(a.at[1], p + (lane.g + 8) * ld, i, lane.of_g ^ flip);
  }
  template <class Value>
  static __device__ __forceinline__ void a_of(A& a, int k0, const Lane&, const Value& value) {
#pragma unroll
    for (int k = 0; k < 8; ++k) a.at[0][k] = value(0, k0 + k), a.at[1][k] = value(1, k0 + k);
  }
  /// Column m0 + … of what is stored; k is scaled by scale[k], if there is a scale.
  template <int ld, bool scaled>
  static __device__ __forceinline__ void a_columns(A& a, const float* p, int m0, const float* scale,
                                                   const Lane& lane) {
#pragma unroll
    for (int k = 0; k < 8; ++k)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float x = p[k * ld + ((m0 + 8 * r + lane.g) ^ swizzle(k))];
        a.at[r][k] = scaled ? scale[k] * x : x;
      }
  }
  template <int ld>
  static __device__ __forceinline__ void b_rows(B& b, const float* p, int i, const Lane& lane) {
#pragma unroll
    for (int c = 0; c < 2; ++c) row(b.at[c], p + (2 * lane.t + c) * ld, i, swizzle(2 * lane.t + c));
  }
  template <int ld>
  static __device__ __forceinline__ void b_columns(B& b, const float* p, int j, int flip, const Lane& lane) {
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const float2 x = two_at(p + k * ld + j / 4 * 32 + ((j % 4 * 8 + 2 * lane.t) ^ swizzle(k) ^ flip));
      b.at[0][k] = x.x, b.at[1][k] = x.y;
    }
  }
  template <int ld>
  static __device__ __forceinline__ void b_rows_far(B& b, const float* p, int i, const Lane& lane) {
#pragma unroll
    for (int c = 0; c < 2; ++c) row(b.at[c], p + (2 * lane.t + c) * ld, i, 0);
  }
  template <int ld>
  static __device__ __forceinline__ void b_columns_far(B& b, const float* p, int j, const Lane& lane) {
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const float2 x = two_at(p + k * ld + 8 * j + 2 * lane.t);
      b.at[0][k] = x.x, b.at[1][k] = x.y;
    }
  }
  static __device__ __forceinline__ void b_first(B& b, const Lane& lane) {
#pragma unroll
    for (int k = 0; k < 8; ++k) b.at[0][k] = lane.t == 0 ? 1.0f : 0.0f, b.at[1][k] = 0.0f;
  }
  static __device__ __forceinline__ float stored(float x) { return x; }
  static __device__ __forceinline__ void multiply(float (&d)[4], const A& a, const B& b) {
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      d[0] += a.at[0][k] * b.at[0][k], d[1] += a.at[0][k] * b.at[1][k];
      d[2] += a.at[1][k] * b.at[0][k], d[3] += a.at[1][k] * b.at[1][k];
    }
  }
};

/// Loads shared by the two TF32 forms; Set stores a float in one or two parts.
template <class Set>
struct Tf32Fragments {
  static constexpr int depth = 8;
  using A = typename Set::A;
  using B = typename Set::B;
  template <int ld>
  static __device__ __forceinline__ void a_rows(A& a, const float* p, int i, int flip, const Lane& lane) {
    const float* row = p + lane.g * ld + (lane.along[i] ^ flip);
    const float2 x = two_at(row), y = two_at(row + 8 * ld);
    Set::set_a(a, 0, x.x), Set::set_a(a, 1, y.x), Set::set_a(a, 2, x.y), Set::set_a(a, 3, y.y);
  }
  template <class Value>
  static __device__ __forceinline__ void a_of(A& a, int k0, const Lane& lane, const Value& value) {
    const int k = k0 + 2 * lane.t;
    Set::set_a(a, 0, value(0, k)), Set::set_a(a, 1, value(1, k));
    Set::set_a(a, 2, value(0, k + 1)), Set::set_a(a, 3, value(1, k + 1));
  }
  template <int ld, bool scaled>
  static __device__ __forceinline__ void a_columns(A& a, const float* p, int m0, const float* scale,
                                                   const Lane& lane) {
    const float *even = p + 2 * lane.t * ld, *odd = even + ld;
    const float2 s = scaled ? two_at(scale + 2 * lane.t) : float2{1, 1};
    const int base = m0 / 32 * 32, flip = m0 % 32;
    Set::set_a(a, 0, s.x * even[base + (lane.even[0] ^ flip)]);
    Set::set_a(a, 1, s.x * even[base + (lane.even[1] ^ flip)]);
    Set::set_a(a, 2, s.y * odd[base + (lane.odd[0] ^ flip)]);
    Set::set_a(a, 3, s.y * odd[base + (lane.odd[1] ^ flip)]);
  }
  template <int ld>
  static __device__ __forceinline__ void b_rows(B& b, const float* p, int i, const Lane& lane) {
    const float2 x = two_at(p + lane.g * ld + lane.along[i]);
    Set::set_b(b, 0, x.x), Set::set_b(b, 1, x.y);
  }
  template <int ld>
  static __device__ __forceinline__ void b_columns(B& b, const float* p, int j, int flip, const Lane& lane) {
    const float* even = p + 2 * lane.t * ld + j / 4 * 32;
    Set::set_b(b, 0, even[lane.even[j % 4] ^ flip]), Set::set_b(b, 1, even[ld + (lane.odd[j % 4] ^ flip)]);
  }
  template <int ld>
  static __device__ __forceinline__ void b_rows_far(B& b, const float* p, int i, const Lane& lane) {
    const float2 x = two_at(p + lane.g * ld + 8 * i + 2 * lane.t);
    Set::set_b(b, 0, x.x), Set::set_b(b, 1, x.y);
  }
  template <int ld>
  static __device__ __forceinline__ void b_columns_far(B& b, const float* p, int j, const Lane& lane) {
    const float* x = p + 2 * lane.t * ld + 8 * j + lane.g;
    Set::set_b(b, 0, x[0]), Set::set_b(b, 1, x[ld]);
  }
  static __device__ __forceinline__ void b_first(B& b, const Lane& lane) {
    Set::set_b(b, 0, lane.g == 0 ? 1.0f : 0.0f), Set::set_b(b, 1, lane.g == 0 ? 1.0f : 0.0f);
  }
};

/// The tensor core cuts what is below TF32. Adding half a unit first rounds to nearest: A's elements, which
/// several products share; states are rounded as they are `stored`. B's other elements are cut.
struct OnePart {
  struct A {
    uint32_t at[4];
  };
  struct B {
    uint32_t at[2];
  };
  static __device__ __forceinline__ void set_a(A& f, int i, float x) {
    f.at[i] = __float_as_uint(x) + 0x1000u;
  }
  static __device__ __forceinline__ void set_b(B& f, int i, float x) { f.at[i] = __float_as_uint(x); }
};
template <>
struct Fragments<Precision::tf32> : Tf32Fragments<OnePart> {
  static __device__ __forceinline__ float stored(float x) { return __uint_as_float(to_tf32(x)); }
  static __device__ __forceinline__ void multiply(float (&d)[4], const A& a, const B& b) {
    mma_tf32(d, a.at, b.at);
  }
};

struct TwoParts {
  struct A {
    uint32_t at[4], rest[4];
  };
  struct B {
    uint32_t at[2], rest[2];
  };
  template <class F>
  static __device__ __forceinline__ void set(F& f, int i, float x) {
    f.at[i] = to_tf32(x);
    f.rest[i] = to_tf32(x - __uint_as_float(f.at[i]));
  }
  static __device__ __forceinline__ void set_a(A& f, int i, float x) { set(f, i, x); }
  static __device__ __forceinline__ void set_b(B& f, int i, float x) { set(f, i, x); }
};
template <>
struct Fragments<Precision::tf32x3> : Tf32Fragments<TwoParts> {
  static __device__ __forceinline__ float stored(float x) { return x; }
  static __device__ __forceinline__ void multiply(float (&d)[4], const A& a, const B& b) {
    mma_tf32(d, a.rest, b.at);
    mma_tf32(d, a.at, b.rest);
    mma_tf32(d, a.at, b.at);
  }
};

template <>
struct Fragments<Precision::bf16> {
  static constexpr int depth = 16;
  struct A {
    uint32_t at[4];
  };
  struct B {
    uint32_t at[2];
  };
  static __device__ __forceinline__ uint32_t pack(float2 x) { return pack_bf16(x.x, x.y); }
  template <int ld>
  static __device__ __forceinline__ void a_rows(A& a, const float* p, int i, int flip, const Lane& lane) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* row = p + lane.g * ld + (lane.along[i + half] ^ flip);
      a.at[2 * half] = pack(two_at(row)), a.at[2 * half + 1] = pack(two_at(row + 8 * ld));
    }
  }
  template <class Value>
  static __device__ __forceinline__ void a_of(A& a, int k0, const Lane& lane, const Value& value) {
    const int k = k0 + 2 * lane.t;
    a.at[0] = pack_bf16(value(0, k), value(0, k + 1)), a.at[1] = pack_bf16(value(1, k), value(1, k + 1));
    a.at[2] = pack_bf16(value(0, k + 8), value(0, k + 9));
    a.at[3] = pack_bf16(value(1, k + 8), value(1, k + 9));
  }
  template <int ld, bool scaled>
  static __device__ __forceinline__ void a_columns(A& a, const float* p, int m0, const float* scale,
                                                   const Lane& lane) {
    const int base = m0 / 32 * 32, flip = m0 % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float *even = p + (8 * half + 2 * lane.t) * ld + base, *odd = even + ld;
      const float2 s = scaled ? two_at(scale + 8 * half + 2 * lane.t) : float2{1, 1};
#pragma unroll
      for (int r = 0; r < 2; ++r)
        a.at[2 * half + r] = pack_bf16(s.x * even[lane.even[r] ^ flip], s.y * odd[lane.odd[r] ^ flip]);
    }
  }
  template <int ld>
  static __device__ __forceinline__ void b_rows(B& b, const float* p, int i, const Lane& lane) {
    const float* row = p + lane.g * ld;
    b.at[0] = pack(two_at(row + lane.along[i])), b.at[1] = pack(two_at(row + lane.along[i + 1]));
  }
  template <int ld>
  static __device__ __forceinline__ void b_columns(B& b, const float* p, int j, int flip, const Lane& lane) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* even = p + (8 * half + 2 * lane.t) * ld + j / 4 * 32;
      b.at[half] = pack_bf16(even[lane.even[j % 4] ^ flip], even[ld + (lane.odd[j % 4] ^ flip)]);
    }
  }
  template <int ld>
  static __device__ __forceinline__ void b_rows_far(B& b, const float* p, int i, const Lane& lane) {
    const float* row = p + lane.g * ld + 8 * i + 2 * lane.t;
    b.at[0] = pack(two_at(row)), b.at[1] = pack(two_at(row + 8));
  }
  template <int ld>
  static __device__ __forceinline__ void b_columns_far(B& b, const float* p, int j, const Lane& lane) {
    const float* x = p + 2 * lane.t * ld + 8 * j + lane.g;
    b.at[0] = pack_bf16(x[0], x[ld]), b.at[1] = pack_bf16(x[8 * ld], x[9 * ld]);
  }
  static __device__ __forceinline__ void b_first(B& b, const Lane& lane) {
    b.at[0] = b.at[1] = lane.g == 0 ? pack_bf16(1, 1) : 0;
  }
  static __device__ __forceinline__ float stored(float x) { return x; }
  static __device__ __forceinline__ void multiply(float (&d)[4], const A& a, const B& b) {
    mma_bf16(d, a.at, b.at);
  }
};

}  // namespace
}  // namespace eigentrace::kernels
#endif
