#pragma once
// Products of a warpgroup (128 threads) with operands in shared memory, and bulk copies there: what sm_90a
// alone has (H100, H200). For .cu files compiled for 90a, see wgmma_exists.
//
// D[64 × n] += A[64 × 16] B[16 × n] in bf16. Of D, warp w of the group holds rows 16 w … 16 w + 15, in them
// lane 4 g + t rows g, g + 8 and columns 8 c + 2 t, 8 c + 2 t + 1: d[4 c + 2 (row ≥ 8) + column % 2]; A from
// registers is mma.sync's fragment (tensor/mma.h) of the same 16 rows.
#ifdef EIGENTRACE_WITH_CUDA
#include <cuda_runtime.h>

#include <cstdint>

#ifdef EIGENTRACE_EMULATE
#include "tests/simt/wgmma.h"
#endif

namespace eigentrace {

/// A tile of bf16 in shared memory, rows × width, as products and bulk copies want it: rows of at most 128
/// bytes, wider tiles in parts of 64 columns one after the other, 16-byte pieces swizzled by the hardware's
/// rule. Addresses are multiples of 1024 bytes.
template <int width, int rows>
struct WgmmaTile {
  static constexpr int row_bytes = width < 64 ? 2 * width : 128, pieces = row_bytes / 16;
  static constexpr int bytes = 2 * width * rows, part_bytes = rows * row_bytes;
  static_assert(width % 16 == 0 && rows % 8 == 0 && (width <= 64 || width % 64 == 0));
  /// In bytes.
  __host__ __device__ static constexpr int offset(int row, int column) {
    const int in = row * row_bytes + column % 64 * 2;
    return column / 64 * rows * row_bytes + (in ^ ((in / 128 & (pieces - 1)) << 4));
  }
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
/// How a product finds a tile's rows; its columns 16 k … 16 k + 15 or its rows 16 k … 16 k + 15 are the
/// depth. `row`, a multiple of 64: where a left operand begins. `part`: the part of 64 columns where the
/// other axis begins.
template <class Tile>
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t address) {
  constexpr uint64_t swizzle = Tile::row_bytes == 128 ? 1 : Tile::row_bytes == 64 ? 2 : 3;
  constexpr uint64_t layout =
      uint64_t{Tile::part_bytes / 16} << 16 | uint64_t{Tile::row_bytes * 8 / 16} << 32 | swizzle << 62;
  return layout | static_cast<uint64_t>(address >> 4);
}
template <class Tile>
__device__ __forceinline__ uint64_t wgmma_columns_of(uint32_t tile, int k, int row = 0) {
  return wgmma_descriptor<Tile>(
      tile + static_cast<uint32_t>(k / 4 * Tile::part_bytes + k % 4 * 32 + row * Tile::row_bytes));
}
template <class Tile>
__device__ __forceinline__ uint64_t wgmma_rows_of(uint32_t tile, int k, int column = 0) {
  return wgmma_descriptor<Tile>(
      tile +
      static_cast<uint32_t>(k * 16 * Tile::row_bytes + column / 64 * Tile::part_bytes + column % 64 * 2));
}

#ifndef EIGENTRACE_EMULATE
#define ET_D8(i)                                                                              \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define ET_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define ET_16 ET_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define ET_32 ET_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define ET_64                                                                                         \
  ET_32                                                                                               \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, " \
  "%51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define ET_128                                                                                        \
  ET_64                                                                                               \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, " \
  "%83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, " \
  "%102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, "  \
  "%118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define ET_OUT_16 ET_D8(0)
#define ET_OUT_32 ET_OUT_16, ET_D8(8)
#define ET_OUT_64 ET_OUT_32, ET_D8(16), ET_D8(24)
#define ET_OUT_128 ET_OUT_64, ET_D8(32), ET_D8(40), ET_D8(48), ET_D8(56)
#define ET_OUT_256 \
  ET_OUT_128, ET_D8(64), ET_D8(72), ET_D8(80), ET_D8(88), ET_D8(96), ET_D8(104), ET_D8(112), ET_D8(120)
#define ET_WGMMA_A(n, list, a0, a1, a2, a3, b, add, turned)                                           \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #add ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n \
               "k16.f32.bf16.bf16 {" list "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b         \
               ", p, 1, 1, %" #turned ";\n}"                                                          \
               : ET_OUT_##n                                                                           \
               : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "l"(right), "r"(static_cast<int>(adds)), \
                 "n"(right_rows))
#define ET_WGMMA(n, list, a, b, add, a_turned, b_turned)                                                     \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #add ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n        \
               "k16.f32.bf16.bf16 {" list "}, %" #a ", %" #b ", p, 1, 1, %" #a_turned ", %" #b_turned ";\n}" \
               : ET_OUT_##n                                                                                  \
               : "l"(left), "l"(right), "r"(static_cast<int>(adds)), "n"(left_rows), "n"(right_rows))

/// d = (adds ? d : 0) + A B, A in registers; right_rows: B is described by wgmma_rows_of, else
/// wgmma_columns_of. Asynchronous: between wgmma_fence and wgmma_wait nothing may touch d and x.
template <int n, int right_rows>
__device__ __forceinline__ void wgmma_bf16(float (&d)[n / 2], const uint32_t (&x)[4], uint64_t right,
                                           bool adds) {
  static_assert(n == 16 || n == 32 || n == 64 || n == 128);
  if constexpr (n == 16) ET_WGMMA_A(16, ET_8, 8, 9, 10, 11, 12, 13, 14);
  if constexpr (n == 32) ET_WGMMA_A(32, ET_16, 16, 17, 18, 19, 20, 21, 22);
  if constexpr (n == 64) ET_WGMMA_A(64, ET_32, 32, 33, 34, 35, 36, 37, 38);
  if constexpr (n == 128) ET_WGMMA_A(128, ET_64, 64, 65, 66, 67, 68, 69, 70);
}
/// A in shared memory too.
template <int n, int left_rows, int right_rows>
__device__ __forceinline__ void wgmma_bf16(float (&d)[n / 2], uint64_t left, uint64_t right, bool adds) {
  static_assert(n == 16 || n == 32 || n == 64 || n == 128);
  if constexpr (n == 16) ET_WGMMA(16, ET_8, 8, 9, 10, 11, 12);
  if constexpr (n == 32) ET_WGMMA(32, ET_16, 16, 17, 18, 19, 20);
  if constexpr (n == 64) ET_WGMMA(64, ET_32, 32, 33, 34, 35, 36);
  if constexpr (n == 128) ET_WGMMA(128, ET_64, 64, 65, 66, 67, 68);
}
#define ET_WGMMA_TF32(n, list, a0, a1, a2, a3, b, add)                                                       \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #add ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n        \
               "k8.f32.tf32.tf32 {" list "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b ", p, 1, 1;\n}" \
               : ET_OUT_##n                                                                                  \
               : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "l"(right), "r"(static_cast<int>(adds)))
/// d = (adds ? d : 0) + A B in TF32 (what is below its precision is cut off), A [64 × 8] in registers, B [8 ×
/// n] described by rows of 8 along the depth: 128 bytes of them side by side, swizzled.
template <int n>
__device__ __forceinline__ void wgmma_tf32(float (&d)[n / 2], const uint32_t (&x)[4], uint64_t right,
                                           bool adds) {
  static_assert(n == 64 || n == 128 || n == 256);
  if constexpr (n == 64) ET_WGMMA_TF32(64, ET_32, 32, 33, 34, 35, 36, 37);
  if constexpr (n == 128) ET_WGMMA_TF32(128, ET_64, 64, 65, 66, 67, 68, 69);
  if constexpr (n == 256) ET_WGMMA_TF32(256, ET_128, 128, 129, 130, 131, 132, 133);
}
/// A in shared memory too, described as B is.
template <int n>
__device__ __forceinline__ void wgmma_tf32(float (&d)[n / 2], uint64_t left, uint64_t right, bool adds) {
  static_assert(n == 64);
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\nwgmma.mma_async.sync.aligned.m64n64k8.f32.tf32.tf32 "
      "{" ET_32 "}, %32, %33, p, 1, 1;\n}"
      : ET_OUT_64
      : "l"(left), "l"(right), "r"(static_cast<int>(adds)));
}
#undef ET_WGMMA_TF32
#undef ET_D8
#undef ET_8
#undef ET_16
#undef ET_32
#undef ET_64
#undef ET_128
#undef ET_OUT_16
#undef ET_OUT_32
#undef ET_OUT_64
#undef ET_OUT_128
#undef ET_OUT_256
#undef ET_WGMMA_A
#undef ET_WGMMA

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Until at most `pending` committed groups are under way.
template <int pending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
/// Nothing that touches x moves past this: products in flight read or write it.
template <int n>
__device__ __forceinline__ void wgmma_pin(float (&x)[n]) {
#pragma unroll
  for (float& f : x) asm volatile("" : "+f"(f)::"memory");
}
template <int n>
__device__ __forceinline__ void wgmma_pin(uint32_t (&x)[n][4]) {
#pragma unroll
  for (auto& fragment : x)
#pragma unroll
    for (uint32_t& f : fragment) asm volatile("" : "+r"(f)::"memory");
}

/// What threads wrote to shared memory is there for products and bulk copies after this and a barrier.
__device__ __forceinline__ void fence_for_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// A barrier of so many arrivals a phase; addresses in shared memory, 8 bytes each.
__device__ __forceinline__ void bulk_barrier_init(uint32_t barrier, int arrivals = 1) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void bulk_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/// This thread's arrival, when what it has copied (copy_async_16, copy_async_4) is there.
__device__ __forceinline__ void copies_arrive(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
/// `bytes` (a multiple of 16, as both addresses) from global to shared memory; one thread. The barrier's
/// phase ends when they are there.
__device__ __forceinline__ void bulk_copy(uint32_t to, const void* from, int bytes, uint32_t barrier) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
      "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(barrier)
      : "memory");
}
/// Until the phase of this parity has ended.
__device__ __forceinline__ void bulk_wait(uint32_t barrier, int parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
/// Named barriers, 1 … 15: `threads` arrive, those that sync wait until all have.
__device__ __forceinline__ void named_arrive(int barrier, int threads) {
  asm volatile("barrier.cta.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_sync(int barrier, int threads) {
  asm volatile("barrier.cta.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
/// A warpgroup's registers a thread from here on: fewer first, then more where they have become free.
template <int registers>
__device__ __forceinline__ void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}
template <int registers>
__device__ __forceinline__ void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}
/// As pack_bf16 (tensor/mma.h), zeros for what is negative.
__device__ __forceinline__ uint32_t pack_kept_bf16(float low, float high) {
  uint32_t y;
  asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
/// Four 8 × 8 matrices of bf16, laid down as ldmatrix reads them: lane 8 m + r says where row r of matrix m
/// goes.
__device__ __forceinline__ void stmatrix_x4(uint32_t to, const uint32_t (&x)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(x[0]),
               "r"(x[1]), "r"(x[2]), "r"(x[3])
               : "memory");
}
/// 16 bytes to an address in shared memory.
__device__ __forceinline__ void store_shared(uint32_t to, const uint32_t (&x)[4]) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(x[0]), "r"(x[1]), "r"(x[2]),
               "r"(x[3])
               : "memory");
}
/// Asks for the 128 bytes around x to be brought to the L2 cache.
__device__ __forceinline__ void prefetch_to_l2(const void* x) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(x));
}
/// The same for `bytes`, a multiple of 16 as x is.
__device__ __forceinline__ void prefetch_bulk(const float* x, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(__cvta_generic_to_global(x)), "r"(bytes)
               : "memory");
}
#endif

/// The block's dynamic shared memory at a multiple of 1024 bytes, where swizzled tiles may begin.
__device__ __forceinline__ unsigned char* tiles_shared() {
#ifdef EIGENTRACE_EMULATE
  return simt::current.dynamic_shared;
#else
  extern __shared__ __align__(1024) unsigned char tiles_shared_memory[];
  return tiles_shared_memory;
#endif
}
#endif

}  // namespace eigentrace
#endif
