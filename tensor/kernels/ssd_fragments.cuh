#pragma once
// Operands of warp products from shared memory, for every precision, in one layout of results: that of
// mma.m16n8 (tensor/mma.h), lane = 4 g + t.
//
// Matrices lie in rows of a multiple of 32 floats; element (r, c) at r·ld + (c ^ swizzle(r)): neighbouring
// rows differ in the 16-byte groups' order, so that reading along rows (pairs of 8 rows × 4 lanes) and down
// columns (8 columns of 4 row pairs) meets every bank once. Which k goes to which slot of a product is free
// as long as both operands agree: here slots t and t + 4 hold k = 2t and 2t + 1, one 8-byte load a row.
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
  int g, t, of_g, of_even, of_odd;  // swizzles of rows g, 2t, 2t + 1
  __device__ __forceinline__ Lane()
      : g(static_cast<int>(threadIdx.x) % 32 / 4),
        t(static_cast<int>(threadIdx.x) % 4),
        of_g(swizzle(g)),
        of_even(swizzle(2 * t)),
        of_odd(swizzle(2 * t + 1)) {}
};

__device__ __forceinline__ float2 two_at(const float* p) { return *reinterpret_cast<const float2*>(p); }

/// Fragments of A [16 × depth] and B [depth × 8]. `rows`: stored with k along the row, p at the first row;
/// `columns`: stored with k as the row. k0: a multiple of depth; rows and columns from multiples of 8. `far`:
/// a matrix in global memory, without swizzles. a_of: elements value(0 or 1 for row g or g + 8, k); b_first:
/// B's first column is 1, the others 0.
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
  static __device__ __forceinline__ void a_rows(A& a, const float* p, int ld, int k0, const Lane& lane) {
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int k = 0; k < 8; k += 4) {
        const float4 x = *reinterpret_cast<const float4*>(p + (lane.g + 8 * r) * ld + ((k0 + k) ^ lane.of_g));
        a.at[r][k] = x.x, a.at[r][k + 1] = x.y, a.at[r][k + 2] = x.z, a.at[r][k + 3] = x.w;
      }
  }
  template <class Value>
  static __device__ __forceinline__ void a_of(A& a, int k0, const Lane&, const Value& value) {
#pragma unroll
    for (int k = 0; k < 8; ++k) a.at[0][k] = value(0, k0 + k), a.at[1][k] = value(1, k0 + k);
  }
  /// Column c of A is scaled by scale[c], if there is a scale.
  template <bool scaled>
  static __device__ __forceinline__ void a_columns(A& a, const float* p, int ld, int m0, int k0,
                                                   const float* scale, const Lane& lane) {
#pragma unroll
    for (int k = 0; k < 8; ++k)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float x = p[(k0 + k) * ld + ((m0 + 8 * r + lane.g) ^ swizzle(k))];
        a.at[r][k] = scaled ? scale[k0 + k] * x : x;
      }
  }
  static __device__ __forceinline__ void b_rows(B& b, const float* p, int ld, int k0, const Lane& lane) {
#pragma unroll
    for (int c = 0; c < 2; ++c)
#pragma unroll
      for (int k = 0; k < 8; k += 4) {
        const float4 x = *reinterpret_cast<const float4*>(p + (2 * lane.t + c) * ld +
                                                          ((k0 + k) ^ (c ? lane.of_odd : lane.of_even)));
        b.at[c][k] = x.x, b.at[c][k + 1] = x.y, b.at[c][k + 2] = x.z, b.at[c][k + 3] = x.w;
      }
  }
  static __device__ __forceinline__ void b_columns(B& b, const float* p, int ld, int n0, int k0,
                                                   const Lane& lane) {
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const float2 x = two_at(p + (k0 + k) * ld + ((n0 + 2 * lane.t) ^ swizzle(k)));
      b.at[0][k] = x.x, b.at[1][k] = x.y;
    }
  }
  static __device__ __forceinline__ void b_rows_far(B& b, const float* p, int ld, int k0, const Lane& lane) {
#pragma unroll
    for (int c = 0; c < 2; ++c)
#pragma unroll
      for (int k = 0; k < 8; k += 4) {
        const float4 x = *reinterpret_cast<const float4*>(p + (2 * lane.t + c) * ld + k0 + k);
        b.at[c][k] = x.x, b.at[c][k + 1] = x.y, b.at[c][k + 2] = x.z, b.at[c][k + 3] = x.w;
      }
  }
  static __device__ __forceinline__ void b_columns_far(B& b, const float* p, int ld, int n0, int k0,
                                                       const Lane& lane) {
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const float2 x = two_at(p + (k0 + k) * ld + n0 + 2 * lane.t);
      b.at[0][k] = x.x, b.at[1][k] = x.y;
    }
  }
  static __device__ __forceinline__ void b_first(B& b, const Lane& lane) {
#pragma unroll
    for (int k = 0; k < 8; ++k) b.at[0][k] = lane.t == 0 ? 1.0f : 0.0f, b.at[1][k] = 0.0f;
  }
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
  static __device__ __forceinline__ void a_rows(A& a, const float* p, int ld, int k0, const Lane& lane) {
    const int k = (k0 + 2 * lane.t) ^ lane.of_g;
    const float2 x = two_at(p + lane.g * ld + k), y = two_at(p + (lane.g + 8) * ld + k);
    Set::set(a, 0, x.x), Set::set(a, 1, y.x), Set::set(a, 2, x.y), Set::set(a, 3, y.y);
  }
  template <class Value>
  static __device__ __forceinline__ void a_of(A& a, int k0, const Lane& lane, const Value& value) {
    const int k = k0 + 2 * lane.t;
    Set::set(a, 0, value(0, k)), Set::set(a, 1, value(1, k));
    Set::set(a, 2, value(0, k + 1)), Set::set(a, 3, value(1, k + 1));
  }
  template <bool scaled>
  static __device__ __forceinline__ void a_columns(A& a, const float* p, int ld, int m0, int k0,
                                                   const float* scale, const Lane& lane) {
    const float *even = p + (k0 + 2 * lane.t) * ld, *odd = even + ld;
    const float2 s = scaled ? two_at(scale + k0 + 2 * lane.t) : float2{1, 1};
    const int m = m0 + lane.g, m_8 = m + 8;
    Set::set(a, 0, s.x * even[m ^ lane.of_even]), Set::set(a, 1, s.x * even[m_8 ^ lane.of_even]);
    Set::set(a, 2, s.y * odd[m ^ lane.of_odd]), Set::set(a, 3, s.y * odd[m_8 ^ lane.of_odd]);
  }
  static __device__ __forceinline__ void b_rows(B& b, const float* p, int ld, int k0, const Lane& lane) {
    const float2 x = two_at(p + lane.g * ld + ((k0 + 2 * lane.t) ^ lane.of_g));
    Set::set(b, 0, x.x), Set::set(b, 1, x.y);
  }
  static __device__ __forceinline__ void b_columns(B& b, const float* p, int ld, int n0, int k0,
                                                   const Lane& lane) {
    const float *even = p + (k0 + 2 * lane.t) * ld, *odd = even + ld;
    const int n = n0 + lane.g;
    Set::set(b, 0, even[n ^ lane.of_even]), Set::set(b, 1, odd[n ^ lane.of_odd]);
  }
  static __device__ __forceinline__ void b_rows_far(B& b, const float* p, int ld, int k0, const Lane& lane) {
    const float2 x = two_at(p + lane.g * ld + k0 + 2 * lane.t);
    Set::set(b, 0, x.x), Set::set(b, 1, x.y);
  }
  static __device__ __forceinline__ void b_columns_far(B& b, const float* p, int ld, int n0, int k0,
                                                       const Lane& lane) {
    const float* x = p + (k0 + 2 * lane.t) * ld + n0 + lane.g;
    Set::set(b, 0, x[0]), Set::set(b, 1, x[ld]);
  }
  static __device__ __forceinline__ void b_first(B& b, const Lane& lane) {
    Set::set(b, 0, lane.g == 0 ? 1.0f : 0.0f), Set::set(b, 1, lane.g == 0 ? 1.0f : 0.0f);
  }
};

/// The tensor core cuts what is below TF32: adding half a unit first rounds to nearest.
struct OnePart {
  struct A {
    uint32_t at[4];
  };
  struct B {
    uint32_t at[2];
  };
  template <class F>
  static __device__ __forceinline__ void set(F& f, int i, float x) {
    f.at[i] = __float_as_uint(x) + 0x1000u;
  }
};
template <>
struct Fragments<Precision::tf32> : Tf32Fragments<OnePart> {
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
};
template <>
struct Fragments<Precision::tf32x3> : Tf32Fragments<TwoParts> {
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
  static __device__ __forceinline__ void a_rows(A& a, const float* p, int ld, int k0, const Lane& lane) {
    const int k = (k0 + 2 * lane.t) ^ lane.of_g, k_8 = (k0 + 8 + 2 * lane.t) ^ lane.of_g;
    const float *row = p + lane.g * ld, *row_8 = row + 8 * ld;
    a.at[0] = pack(two_at(row + k)), a.at[1] = pack(two_at(row_8 + k));
    a.at[2] = pack(two_at(row + k_8)), a.at[3] = pack(two_at(row_8 + k_8));
  }
  template <class Value>
  static __device__ __forceinline__ void a_of(A& a, int k0, const Lane& lane, const Value& value) {
    const int k = k0 + 2 * lane.t;
    a.at[0] = pack_bf16(value(0, k), value(0, k + 1)), a.at[1] = pack_bf16(value(1, k), value(1, k + 1));
    a.at[2] = pack_bf16(value(0, k + 8), value(0, k + 9));
    a.at[3] = pack_bf16(value(1, k + 8), value(1, k + 9));
  }
  template <bool scaled>
  static __device__ __forceinline__ void a_columns(A& a, const float* p, int ld, int m0, int k0,
                                                   const float* scale, const Lane& lane) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int k = k0 + 8 * half + 2 * lane.t;
      const float *even = p + k * ld, *odd = even + ld;
      const float2 s = scaled ? two_at(scale + k) : float2{1, 1};
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int m = m0 + 8 * r + lane.g;
        a.at[2 * half + r] = pack_bf16(s.x * even[m ^ lane.of_even], s.y * odd[m ^ lane.of_odd]);
      }
    }
  }
  static __device__ __forceinline__ void b_rows(B& b, const float* p, int ld, int k0, const Lane& lane) {
    const float* row = p + lane.g * ld;
    b.at[0] = pack(two_at(row + ((k0 + 2 * lane.t) ^ lane.of_g)));
    b.at[1] = pack(two_at(row + ((k0 + 8 + 2 * lane.t) ^ lane.of_g)));
  }
  static __device__ __forceinline__ void b_columns(B& b, const float* p, int ld, int n0, int k0,
                                                   const Lane& lane) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float *even = p + (k0 + 8 * half + 2 * lane.t) * ld, *odd = even + ld;
      const int n = n0 + lane.g;
      b.at[half] = pack_bf16(even[n ^ lane.of_even], odd[n ^ lane.of_odd]);
    }
  }
  static __device__ __forceinline__ void b_rows_far(B& b, const float* p, int ld, int k0, const Lane& lane) {
    const float* row = p + lane.g * ld + k0 + 2 * lane.t;
    b.at[0] = pack(two_at(row)), b.at[1] = pack(two_at(row + 8));
  }
  static __device__ __forceinline__ void b_columns_far(B& b, const float* p, int ld, int n0, int k0,
                                                       const Lane& lane) {
    const float* x = p + (k0 + 2 * lane.t) * ld + n0 + lane.g;
    b.at[0] = pack_bf16(x[0], x[ld]), b.at[1] = pack_bf16(x[8 * ld], x[9 * ld]);
  }
  static __device__ __forceinline__ void b_first(B& b, const Lane& lane) {
    b.at[0] = b.at[1] = lane.g == 0 ? pack_bf16(1, 1) : 0;
  }
  static __device__ __forceinline__ void multiply(float (&d)[4], const A& a, const B& b) {
    mma_bf16(d, a.at, b.at);
  }
};

}  // namespace
}  // namespace eigentrace::kernels
#endif
