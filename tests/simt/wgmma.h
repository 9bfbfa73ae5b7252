#pragma once
// What tensor/wgmma.h has on H100 and H200, on fibers: products of warpgroups with operands in shared memory,
// bulk copies, barriers that count arrivals and bytes, named barriers. Addresses in shared memory are offsets
// from the block's dynamic shared memory.
//
// A product reads its operands in shared memory and writes D when its warp waits for its group, a bulk copy
// lands some time after it was asked for: what does not wait sees old values, what is written over too early
// is read so.
#include <cstdint>

#include "tests/simt/cuda_bf16.h"

namespace simt {

/// Until `count` threads of the block have called with this id; `waits`: this one too.
void named_barrier(int id, int count, bool waits);
void count_init(uint32_t barrier, int arrivals);
/// `bytes` more to come in this phase, before the arrival counts.
void count_arrive(uint32_t barrier, int64_t bytes = 0);
/// This thread's arrival when its copy_async until now have landed.
void count_arrive_after_copies(uint32_t barrier);
void count_wait(uint32_t barrier, int parity);
void bulk_copy(uint32_t to, const void* from, int bytes, uint32_t barrier);

/// A product of this lane that takes effect when its warp waits: d[4 c + 2 r + e] (+)= row g + 8 r of A times
/// column 8 c + 2 t + e of B.
struct Product {
  float* d;
  int columns;         ///< of B
  bool adds, is_bf16;  ///< TF32 else: 8 of k, bf16 16
  bool left_in_memory, left_rows, right_rows;
  uint32_t a[4][4];  ///< of the four lanes of this one's rows, if in registers
  uint64_t left, right;
};
void product(const Product& p);
void run_product(const Product& p);
void product_commit();
void product_wait(int pending);

}  // namespace simt

namespace eigentrace {

inline void wgmma_product(float* d, int columns, bool is_bf16, const uint32_t (&x)[4], uint64_t right,
                          bool right_rows, bool adds) {
  simt::Product p{d, columns, adds, is_bf16, false, false, right_rows, {}, 0, right};
  struct Fragment {
    uint32_t x[4];
  };
  for (unsigned lane = 0; lane < 4; ++lane) {
    const Fragment theirs =
        simt::exchange(0xFFFFFFFFu, Fragment{{x[0], x[1], x[2], x[3]}}, simt::lane() / 4 * 4 + lane);
    std::memcpy(p.a[lane], theirs.x, sizeof(theirs));
  }
  simt::product(p);
}
template <int n, int right_rows>
void wgmma_bf16(float (&d)[n / 2], const uint32_t (&x)[4], uint64_t right, bool adds) {
  wgmma_product(d, n, true, x, right, right_rows, adds);
}
template <int n, int left_rows, int right_rows>
void wgmma_bf16(float (&d)[n / 2], uint64_t left, uint64_t right, bool adds) {
  simt::product({d, n, adds, true, true, left_rows != 0, right_rows != 0, {}, left, right});
}
template <int n>
void wgmma_tf32(float (&d)[n / 2], const uint32_t (&x)[4], uint64_t right, bool adds) {
  wgmma_product(d, n, false, x, right, false, adds);
}
template <int n>
void wgmma_tf32(float (&d)[n / 2], uint64_t left, uint64_t right, bool adds) {
  simt::product({d, n, adds, false, true, false, false, {}, left, right});
}
inline void wgmma_fence() {}
inline void wgmma_commit() { simt::product_commit(); }
template <int pending>
void wgmma_wait() {
  simt::product_wait(pending);
}
template <class T>
void wgmma_pin(T&) {}
inline void fence_for_async() {}
inline void bulk_barrier_init(uint32_t barrier, int arrivals = 1) { simt::count_init(barrier, arrivals); }
inline void bulk_arrive(uint32_t barrier) { simt::count_arrive(barrier); }
inline void copies_arrive(uint32_t barrier) { simt::count_arrive_after_copies(barrier); }
inline void bulk_copy(uint32_t to, const void* from, int bytes, uint32_t barrier) {
  simt::bulk_copy(to, from, bytes, barrier);
}
inline void bulk_wait(uint32_t barrier, int parity) { simt::count_wait(barrier, parity); }
inline void named_arrive(int barrier, int threads) { simt::named_barrier(barrier, threads, false); }
inline void named_sync(int barrier, int threads) { simt::named_barrier(barrier, threads, true); }
template <int registers>
void fewer_registers() {}
template <int registers>
void more_registers() {}
inline uint32_t pack_kept_bf16(float low, float high) {
  const auto kept = [](float x) { return uint32_t{__float2bfloat16_rn(x < 0 ? 0.0f : x).bits}; };
  return kept(low) | kept(high) << 16;
}
inline void stmatrix_x4(uint32_t to, const uint32_t (&x)[4]) {
  for (unsigned m = 0; m < 4; ++m) {  // row g of matrix m goes where lane 8 m + g says
    const uint32_t row = simt::exchange(0xFFFFFFFFu, to, 8 * m + simt::lane() / 4);
    std::memcpy(simt::current.dynamic_shared + row + simt::lane() % 4 * 4, &x[m], 4);
  }
  simt::warp_barrier(0xFFFFFFFFu);
}
inline void store_shared(uint32_t to, const uint32_t (&x)[4]) {
  std::memcpy(simt::current.dynamic_shared + to, x, 16);
}
inline void prefetch_to_l2(const void*) {}
inline void prefetch_bulk(const float*, int) {}

}  // namespace eigentrace
