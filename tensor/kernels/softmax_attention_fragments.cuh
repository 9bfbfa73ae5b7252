#pragma once
// Tensor-core products of softmax attention, one interface for three precisions. A fragment is a warp's 16 ×
// 16 piece of an operand; the depth's order inside a fragment is free as long as both operands agree, which
// lets TF32 take accumulators as left operands: depth slots t and t + 4 of each 8 are then columns 2t and 2t
// + 1.
//   load           left operand stored [row][depth]
//   load_transposed  left operand stored [depth][row]       with load_columns
//   from             left operand out of two accumulators   with load_columns
//   load_rows      right operand stored [column][depth]     with load
//   load_columns   right operand stored [depth][column]
// Rows of shared memory are `pad` elements longer than their content: 4 banks, so that no access conflicts.
#include "tensor/kernels/softmax_attention_cuda.cuh"
#include "tensor/mma.h"

#ifdef EIGENTRACE_WITH_CUDA
namespace eigentrace::kernels {

/// 2ˣ to 2 units in the last place; results below 2⁻¹²⁶ are zero.
__device__ __forceinline__ float attention_exp2(float x) {
#ifdef EIGENTRACE_EMULATE
  return std::exp2(x);
#else
  float y;
  asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));  // where it is written: between products
  return y;
#endif
}

/// 16 × 8 results a warp.
using AttentionResults = float[4];

/// Of elements ≥ 2 that are not negative (infinity and NaN too), this bit of a float32's high half is set.
constexpr uint32_t attention_large = 0x4000u;

/// Sums that products start from: `x` of both columns of row g, `y` of row g + 8. Four registers in a row
/// that stay: the compiler must not know them equal, or it copies them in front of each product.
__device__ __forceinline__ void attention_set_start(AttentionResults& start, float x, float y) {
  start[0] = start[1] = x, start[2] = start[3] = y;
#ifndef EIGENTRACE_EMULATE
  asm volatile("" : "+f"(start[0]), "+f"(start[1]), "+f"(start[2]), "+f"(start[3]));
#endif
}

/// As shared memory has them, 16 bytes.
__device__ __forceinline__ void attention_read_start(AttentionResults& start, const float* x) {
  const float4 four = *reinterpret_cast<const float4*>(x);
  start[0] = four.x, start[1] = four.y, start[2] = four.z, start[3] = four.w;
}

/// d = c + a b in bf16, as mma_bf16, without a copy of c.
__device__ __forceinline__ void attention_mma_bf16(AttentionResults& d, const uint32_t (&a)[4],
                                                   const uint32_t (&b)[2], const AttentionResults& c) {
#ifdef EIGENTRACE_EMULATE
  std::memcpy(d, c, sizeof(d));
  mma_bf16(d, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%10,%11,%12,%13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]),
        "f"(c[3]));
#endif
}

struct AttentionBf16 {
  using Element = uint16_t;
  static constexpr Precision precision = Precision::bf16;
  /// Exponents' second summands enter with the products: rounded to float32's last place of the larger one.
  static constexpr bool starts = true;
  static constexpr int pad = 8;
  struct Fragment {
    uint32_t x[4];
  };

  __device__ static void put(Element* to, const float4& x) {
    *reinterpret_cast<uint2*>(to) = make_uint2(pack_bf16(x.x, x.y), pack_bf16(x.z, x.w));
  }
  __device__ static void put(Element* to, float a, float b) {
    *reinterpret_cast<uint32_t*>(to) = pack_bf16(a, b);
  }
  __device__ static Fragment load(const Element* x, int pitch) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    Fragment f;
    ldmatrix_x4(f.x, x + lane % 16 * pitch + lane / 16 * 8);
    return f;
  }
  __device__ static Fragment load_transposed(const Element* x, int pitch) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    Fragment f;
    ldmatrix_x4<true>(f.x, x + (lane / 16 * 8 + lane % 8) * pitch + lane / 8 % 2 * 8);
    return f;
  }
  __device__ static Fragment load_rows(const Element* x, int pitch) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    Fragment f;
    ldmatrix_x4(f.x, x + (lane / 16 * 8 + lane % 8) * pitch + lane / 8 % 2 * 8);
    return f;
  }
  __device__ static Fragment load_columns(const Element* x, int pitch) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    Fragment f;
    ldmatrix_x4<true>(f.x, x + lane % 16 * pitch + lane / 16 * 8);
    return f;
  }
  __device__ static Fragment from(const AttentionResults& left, const AttentionResults& right) {
    return {{pack_bf16(left[0], left[1]), pack_bf16(left[2], left[3]), pack_bf16(right[0], right[1]),
             pack_bf16(right[2], right[3])}};
  }
  /// [d0, d1] += a b
  __device__ static void mma(AttentionResults& d0, AttentionResults& d1, const Fragment& a,
                             const Fragment& b) {
    const uint32_t b0[2] = {b.x[0], b.x[1]}, b1[2] = {b.x[2], b.x[3]};
    mma_bf16(d0, a.x, b0);
    mma_bf16(d1, a.x, b1);
  }
  /// [d0, d1] = [c0, c1] + a b
  __device__ static void mma(AttentionResults& d0, AttentionResults& d1, const Fragment& a, const Fragment& b,
                             const AttentionResults& c0, const AttentionResults& c1) {
    const uint32_t b0[2] = {b.x[0], b.x[1]}, b1[2] = {b.x[2], b.x[3]};
    attention_mma_bf16(d0, a.x, b0, c0);
    attention_mma_bf16(d1, a.x, b1, c1);
  }
  /// d[2 r] += the sum of row g + 8 r, as rounded.
  __device__ static void add_row_sums(AttentionResults& d, const Fragment& a) {
    const uint32_t ones[2] = {0x3F803F80u, 0x3F803F80u};
    mma_bf16(d, a.x, ones);
  }
  /// The bits of row g + 8 r's elements, or-ed; `large`: where attention_large is in them.
  __device__ static uint32_t row_bits(const Fragment& a, int r) { return a.x[r] | a.x[2 + r]; }
  static constexpr uint32_t large = attention_large << 16 | attention_large;
  /// Keeps the elements whose half of kept[row + 2 · (column ≥ 8)] is set; columns 2t, 2t + 1 in its halves.
  __device__ static void drop(Fragment& a, const uint32_t (&kept)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) a.x[i] &= kept[i];
  }
};

/// The loads of both TF32 precisions: x[4 h …] for depth 8 h …, 32-bit elements as shared memory has them.
struct AttentionFloats {
  uint32_t x[8];

  __device__ static AttentionFloats load(const float* x, int pitch) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    return matrices(x + lane % 16 * pitch + lane / 16 * 4);
  }
  __device__ static AttentionFloats load_rows(const float* x, int pitch) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    return matrices(x + (lane / 16 * 8 + lane % 8) * pitch + lane / 8 % 2 * 4);
  }
  __device__ static AttentionFloats load_transposed(const float* x, int pitch) {
    return plain(x, pitch, {0, 2, 1, 3});
  }
  __device__ static AttentionFloats load_columns(const float* x, int pitch) {
    return plain(x, pitch, {0, 1, 2, 3});
  }
  __device__ static AttentionFloats from(const AttentionResults& left, const AttentionResults& right) {
    AttentionFloats f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // (g, 2t), (g + 8, 2t), (g, 2t + 1), (g + 8, 2t + 1)
      f.x[i] = __float_as_uint(left[i % 2 * 2 + i / 2]);
      f.x[4 + i] = __float_as_uint(right[i % 2 * 2 + i / 2]);
    }
    return f;
  }

  __device__ static uint32_t row_bits(const uint32_t (&x)[8], int r) {
    return x[r] | x[2 + r] | x[4 + r] | x[6 + r];
  }
  __device__ static void drop(uint32_t (&x)[8], const uint32_t (&kept)[4]) {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      x[i] &= __byte_perm(kept[i / 4 * 2 + i % 2], 0, i / 2 % 2 ? 0x3232u : 0x1010u);
  }
  static constexpr uint32_t large = attention_large << 16;

 private:
  struct Order {
    int place[4];
  };
  __device__ static AttentionFloats matrices(const float* row) {  // 8 × 4 floats are 8 × 8 halves
    AttentionFloats f;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      uint32_t r[4];
      ldmatrix_x4(r, row + 8 * h);
#pragma unroll
      for (int i = 0; i < 4; ++i) f.x[4 * h + i] = r[i];
    }
    return f;
  }
  __device__ static AttentionFloats plain(const float* x, int pitch, const Order& order) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const float* p = x + lane % 4 * 2 * pitch + lane / 4;
    AttentionFloats f;
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int i = 0; i < 4; ++i)  // depth 2t + i % 2, column g + 8 (i / 2)
        f.x[4 * h + order.place[i]] = __float_as_uint(p[(8 * h + i % 2) * pitch + i / 2 * 8]);
    return f;
  }
};

__device__ __forceinline__ void attention_mma_tf32(AttentionResults& d0, AttentionResults& d1,
                                                   const uint32_t (&a)[8], const uint32_t (&b)[8]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const uint32_t left[4] = {a[4 * h], a[4 * h + 1], a[4 * h + 2], a[4 * h + 3]};
    const uint32_t b0[2] = {b[4 * h], b[4 * h + 1]}, b1[2] = {b[4 * h + 2], b[4 * h + 3]};
    mma_tf32(d0, left, b0);
    mma_tf32(d1, left, b1);
  }
}

/// Elements are rounded when they are put into shared memory.
struct AttentionTf32 {
  using Element = float;
  static constexpr Precision precision = Precision::tf32;
  static constexpr bool starts = false;
  static constexpr int pad = 4;
  using Fragment = AttentionFloats;

  __device__ static float rounded(float x) { return __uint_as_float(to_tf32(x)); }
  __device__ static void put(float* to, const float4& x) {
    *reinterpret_cast<float4*>(to) = make_float4(rounded(x.x), rounded(x.y), rounded(x.z), rounded(x.w));
  }
  __device__ static void put(float* to, float a, float b) {
    *reinterpret_cast<float2*>(to) = make_float2(rounded(a), rounded(b));
  }
  __device__ static Fragment load(const float* x, int pitch) { return Fragment::load(x, pitch); }
  __device__ static Fragment load_rows(const float* x, int pitch) { return Fragment::load_rows(x, pitch); }
  __device__ static Fragment load_columns(const float* x, int pitch) {
    return Fragment::load_columns(x, pitch);
  }
  __device__ static Fragment load_transposed(const float* x, int pitch) {
    return Fragment::load_transposed(x, pitch);
  }
  __device__ static Fragment from(const AttentionResults& left, const AttentionResults& right) {
    Fragment f = Fragment::from(left, right);
#pragma unroll
    for (int i = 0; i < 8; ++i) f.x[i] = to_tf32(__uint_as_float(f.x[i]));
    return f;
  }
  __device__ static void mma(AttentionResults& d0, AttentionResults& d1, const Fragment& a,
                             const Fragment& b) {
    attention_mma_tf32(d0, d1, a.x, b.x);
  }
  __device__ static uint32_t row_bits(const Fragment& a, int r) { return Fragment::row_bits(a.x, r); }
  static constexpr uint32_t large = Fragment::large;
  __device__ static void drop(Fragment& a, const uint32_t (&kept)[4]) { Fragment::drop(a.x, kept); }
};

/// x = big + small, both TF32; products big·small + small·big + big·big.
struct AttentionTf32x3 {
  using Element = float;
  static constexpr Precision precision = Precision::tf32x3;
  static constexpr bool starts = false;
  static constexpr int pad = 4;
  struct Fragment {
    uint32_t big[8], small[8];
    Fragment() = default;
    __device__ explicit Fragment(const AttentionFloats& f) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float x = __uint_as_float(f.x[i]);
        big[i] = to_tf32(x);
        small[i] = to_tf32(x - __uint_as_float(big[i]));
      }
    }
  };

  __device__ static void put(float* to, const float4& x) { *reinterpret_cast<float4*>(to) = x; }
  __device__ static void put(float* to, float a, float b) {
    *reinterpret_cast<float2*>(to) = make_float2(a, b);
  }
  __device__ static Fragment load(const float* x, int pitch) {
    return Fragment(AttentionFloats::load(x, pitch));
  }
  __device__ static Fragment load_rows(const float* x, int pitch) {
    return Fragment(AttentionFloats::load_rows(x, pitch));
  }
  __device__ static Fragment load_columns(const float* x, int pitch) {
    return Fragment(AttentionFloats::load_columns(x, pitch));
  }
  __device__ static Fragment load_transposed(const float* x, int pitch) {
    return Fragment(AttentionFloats::load_transposed(x, pitch));
  }
  __device__ static Fragment from(const AttentionResults& left, const AttentionResults& right) {
    return Fragment(AttentionFloats::from(left, right));
  }
  __device__ static void mma(AttentionResults& d0, AttentionResults& d1, const Fragment& a,
                             const Fragment& b) {
    attention_mma_tf32(d0, d1, a.big, b.small);
    attention_mma_tf32(d0, d1, a.small, b.big);
    attention_mma_tf32(d0, d1, a.big, b.big);
  }
  __device__ static uint32_t row_bits(const Fragment& a, int r) {
    return AttentionFloats::row_bits(a.big, r);
  }
  static constexpr uint32_t large = AttentionFloats::large;
  __device__ static void drop(Fragment& a, const uint32_t (&kept)[4]) {
    AttentionFloats::drop(a.big, kept);
    AttentionFloats::drop(a.small, kept);
  }
};

}  // namespace eigentrace::kernels
#endif
