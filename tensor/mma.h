#pragma once
// Tensor-core products of one warp, and asynchronous copies to shared memory. For kernels/*.cu only.
//
// Fragments of D[16×8] += A[16×K] B[K×8], lane = 4 g + t (g = 0…7, t = 0…3), as PTX's mma.m16n8kK lays down:
//   d[0], d[1]: row g, columns 2t, 2t+1;  d[2], d[3]: row g + 8
//   tf32, K = 8:   a[0] (g, t), a[1] (g+8, t), a[2] (g, t+4), a[3] (g+8, t+4);  b[0] (t, g), b[1] (t+4, g)
//   bf16, K = 16:  a[0] (g, 2t…2t+1), a[1] (g+8, 2t…), a[2] (g, 2t+8…), a[3] (g+8, 2t+8…);
//                  b[0] (2t…2t+1, g), b[1] (2t+8…, g); the lower half of a register is the lower index
#ifdef EIGENTRACE_WITH_CUDA
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#ifdef EIGENTRACE_EMULATE
#include "tests/simt/async_copy.h"
#endif

namespace eigentrace {

/// x rounded to TF32 (10 bits of mantissa, to nearest), as the bits of a float32. Ties go to even from sm_90
/// on, where that is one instruction (away from zero would be three), before that away from zero.
__device__ __forceinline__ uint32_t to_tf32(float x) {
#ifdef EIGENTRACE_EMULATE
  return (__float_as_uint(x) + 0x1000u) & 0xFFFFE000u;
#else
  uint32_t y;
#if __CUDA_ARCH__ >= 900
  asm("cvt.rn.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
#else
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
#endif
  return y;
#endif
}

/// Two values rounded to bf16 in one register, `low` in the lower half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
#ifdef EIGENTRACE_EMULATE
  return uint32_t{__float2bfloat16_rn(low).bits} | uint32_t{__float2bfloat16_rn(high).bits} << 16;
#else
  uint32_t y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
#endif
}

#ifdef EIGENTRACE_EMULATE
struct MmaOperands {
  uint32_t a[4], b[2];
};
/// The lanes' operands are gathered, then each lane computes its four results.
template <class Element>
inline void emulate_mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int depth,
                        Element&& element) {
  const MmaOperands mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  std::memcpy(simt::lane_slot(simt::lane()), &mine, sizeof(mine));
  simt::warp_barrier(0xFFFFFFFFu);
  const auto of = [](unsigned lane) { return reinterpret_cast<const MmaOperands*>(simt::lane_slot(lane)); };
  const unsigned g = simt::lane() / 4, t = simt::lane() % 4;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = g + i / 2 * 8, column = 2 * t + i % 2;
    float sum = 0;
    for (int k = 0; k < depth; ++k) sum += element(of, row, column, static_cast<unsigned>(k));
    d[i] += sum;
  }
  simt::warp_barrier(0xFFFFFFFFu);
}
#endif

/// D += A B, 16×8×8, TF32 operands (what is below TF32's precision is cut off), float32 sums. Whole warps
/// only.
__device__ __forceinline__ void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef EIGENTRACE_EMULATE
  emulate_mma(d, a, b, 8, [](const auto& of, unsigned row, unsigned column, unsigned k) {
    const uint32_t x = of(row % 8 * 4 + k % 4)->a[k / 4 * 2 + row / 8], y = of(column * 4 + k % 4)->b[k / 4];
    return __uint_as_float(x & 0xFFFFE000u) * __uint_as_float(y & 0xFFFFE000u);
  });
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

/// D += A B, 16×8×16, bf16 operands, float32 sums. Whole warps only.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef EIGENTRACE_EMULATE
  emulate_mma(d, a, b, 16, [](const auto& of, unsigned row, unsigned column, unsigned k) {
    const uint32_t x = of(row % 8 * 4 + k % 8 / 2)->a[k / 8 * 2 + row / 8],
                   y = of(column * 4 + k % 8 / 2)->b[k / 8];
    const auto half = [&](uint32_t pair) { return __uint_as_float(k % 2 ? pair & 0xFFFF0000u : pair << 16); };
    return half(x) * half(y);
  });
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

/// Four 8×8 matrices of 16-bit elements from shared memory: lane 8 i + r gives the address of row r of matrix
/// i (16 bytes, aligned); r[i] of lane 4 g + t is elements (g, 2t…2t+1) of matrix i, or of its transpose.
template <bool Transposed = false>
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
#ifdef EIGENTRACE_EMULATE
  const auto* mine = static_cast<const uint16_t*>(row);
  std::memcpy(simt::lane_slot(simt::lane()), &mine, sizeof(mine));
  simt::warp_barrier(0xFFFFFFFFu);
  const unsigned g = simt::lane() / 4, t = simt::lane() % 4;
  for (unsigned i = 0; i < 4; ++i) {
    const auto at = [&](unsigned matrix_row, unsigned column) {
      const uint16_t* address;
      std::memcpy(&address, simt::lane_slot(8 * i + matrix_row), sizeof(address));
      return uint32_t{address[column]};
    };
    r[i] = Transposed ? at(2 * t, g) | at(2 * t + 1, g) << 16 : at(g, 2 * t) | at(g, 2 * t + 1) << 16;
  }
  simt::warp_barrier(0xFFFFFFFFu);
#else
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (Transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
#endif
}

/// 16 bytes from global to shared memory, both aligned, without registers; zeros if not `valid` (then `from`
/// is not read). Visible after copy_wait and a barrier.
__device__ __forceinline__ void copy_async_16(void* to, const void* from, bool valid = true) {
#ifdef EIGENTRACE_EMULATE
  simt::copy_async(to, from, valid ? 16 : 0, 16);
#else
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes)
               : "memory");
#endif
}
/// As copy_async_16, where only the first `bytes` (0, 4, … 16) are read and the rest become zeros.
__device__ __forceinline__ void copy_async_part(void* to, const void* from, int bytes) {
#ifdef EIGENTRACE_EMULATE
  simt::copy_async(to, from, static_cast<size_t>(bytes), 16);
#else
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes)
               : "memory");
#endif
}
/// 4 bytes, aligned to 4; zeros if not `valid`.
__device__ __forceinline__ void copy_async_4(void* to, const void* from, bool valid) {
#ifdef EIGENTRACE_EMULATE
  simt::copy_async(to, from, valid ? 4 : 0, 4);
#else
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  const int bytes = valid ? 4 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address), "l"(from), "r"(bytes)
               : "memory");
#endif
}
__device__ __forceinline__ void copy_commit() {
#ifdef EIGENTRACE_EMULATE
  simt::copy_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
/// Until at most `pending` of this thread's committed groups are still under way.
template <int pending>
__device__ __forceinline__ void copy_wait() {
#ifdef EIGENTRACE_EMULATE
  simt::copy_wait(pending);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}

}  // namespace eigentrace
#endif
