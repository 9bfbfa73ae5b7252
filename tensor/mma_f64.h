#pragma once
// Tensor-core products in float64 of one warp. For kernels/*.cu only.
//
// D[16×8] += A[16×8] B[8×8], lane = 4 g + t (g = 0…7, t = 0…3), fragments as those of TF32 (tensor/mma.h):
//   a[0] (g, t), a[1] (g+8, t), a[2] (g, t+4), a[3] (g+8, t+4);  b[0] (t, g), b[1] (t+4, g)
//   d[0], d[1]: row g, columns 2t, 2t+1;  d[2], d[3]: row g + 8
// A fused multiply-add a product, as outside tensor cores; twice as many a second on data-centre chips.
#ifdef EIGENTRACE_WITH_CUDA
#include <cuda_runtime.h>

namespace eigentrace {

#ifdef EIGENTRACE_EMULATE
struct MmaOperandsF64 {
  double a[4], b[2];
};
#endif

/// Whole warps only.
__device__ __forceinline__ void mma_f64(double (&d)[4], const double (&a)[4], const double (&b)[2]) {
#ifdef EIGENTRACE_EMULATE
  const MmaOperandsF64 mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  std::memcpy(simt::lane_slot(simt::lane()), &mine, sizeof(mine));
  simt::warp_barrier(0xFFFFFFFFu);
  const auto of = [](unsigned lane) {
    return reinterpret_cast<const MmaOperandsF64*>(simt::lane_slot(lane));
  };
  const unsigned g = simt::lane() / 4, t = simt::lane() % 4;
  for (unsigned i = 0; i < 4; ++i)
    for (unsigned k = 0; k < 8; ++k)
      d[i] = fma(of(g * 4 + k % 4)->a[k / 4 * 2 + i / 2], of((2 * t + i % 2) * 4 + k % 4)->b[k / 4], d[i]);
  simt::warp_barrier(0xFFFFFFFFu);
#elif __CUDA_ARCH__ >= 900
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+d"(d[0]), "+d"(d[1]), "+d"(d[2]), "+d"(d[3])
      : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(b[0]), "d"(b[1]));
#else
#pragma unroll
  for (int k = 0; k < 2; ++k)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%3}, {%0,%1};"
                   : "+d"(d[2 * half]), "+d"(d[2 * half + 1])
                   : "d"(a[2 * k + half]), "d"(b[k]));
#endif
}

}  // namespace eigentrace
#endif
