#pragma once
// Fourier transform of one signal by one block, any length: Stockham's algorithm, radices 4, 2, 3, 5 and any
// other prime slowly. Spectra lie in natural order. For .cu files only.
//
// Roots exp(−2πi k/n), k = 0..n−1, come from a table (fill_roots): their angles are exact in sincospi.
#include "tensor/cplx.h"
#include "tensor/dispatch.h"

namespace eigentrace::kernels {
namespace {

constexpr int fft_most_stages = 40;

/// How a transform of length n goes: passed to kernels by value.
struct FftPlan {
  int64_t length;
  int stages = 0;
  int64_t radix[fft_most_stages];
  explicit FftPlan(int64_t n) : length(n) {
    for (int64_t p = 4; n > 1;) {
      if (n % p == 0)
        radix[stages++] = p, n /= p;
      else
        p = p == 4 ? 2 : p == 2 ? 3 : p * p > n ? n : p + 2;
    }
  }
};

template <class T>
struct Roots {
  cplx<T>* to;
  int64_t n;
  ET_HD void operator()(int64_t k) const {
#ifdef __CUDACC__
    double s, c;
    sincospi(2.0 * static_cast<double>(k) / static_cast<double>(n), &s, &c);
#else
    const double angle = 6.283185307179586477 * static_cast<double>(k) / static_cast<double>(n);
    const double s = sin(angle), c = cos(angle);
#endif
    to[k] = {static_cast<T>(c), static_cast<T>(-s)};
  }
};

/// A table of the n-th roots of one. Ask for its memory with ctx.empty({2 * n}, …).
template <class T>
cplx<T>* fill_roots(const Context& ctx, int64_t n, const Tensor& memory) {
  auto* roots = reinterpret_cast<cplx<T>*>(memory.data<T>());
  for_each_index(ctx, n, Roots<T>{roots, n});
  return roots;
}

template <bool inverse, class T>
__device__ __forceinline__ cplx<T> turned(const cplx<T>& x, const cplx<T>& w) {
  if constexpr (inverse) return {x.re * w.re + x.im * w.im, x.im * w.re - x.re * w.im};
  return {x.re * w.re - x.im * w.im, x.re * w.im + x.im * w.re};
}
template <bool inverse, class T>
__device__ __forceinline__ cplx<T> quarter_turned(const cplx<T>& x) {
  if constexpr (inverse) return {-x.im, x.re};
  return {x.im, -x.re};
}

/// Transforms a (inverse: times n) with b as scratch, both of n < 2³¹ numbers in shared or global memory;
/// returns the one that holds the result. Every thread of the block calls it; ends with a barrier, starts
/// with one.
template <bool inverse, class T>
__device__ cplx<T>* block_fft(const FftPlan& plan, const cplx<T>* roots, cplx<T>* a, cplx<T>* b) {
  const auto n = static_cast<uint32_t>(plan.length);
  uint32_t stride = 1;
  __syncthreads();
  for (int stage = 0; stage < plan.stages; ++stage) {
    const auto radix = static_cast<uint32_t>(plan.radix[stage]);
    const uint32_t m = n / radix;
    for (uint32_t i = threadIdx.x; i < m; i += blockDim.x) {
      const uint32_t q = i % stride, turn = i - q;  // turn: p stride, p = i / stride
      const cplx<T>* x = a + i;                     // x[k m], k = 0..radix−1
      cplx<T>* y = b + (turn * radix + q);          // y[j stride]
      if (radix == 4) {
        const cplx<T> x0 = x[0], x1 = x[m], x2 = x[2 * m], x3 = x[3 * m];
        const cplx<T> even = x0 + x2, odd = x1 + x3, even_ = x0 - x2;
        const cplx<T> odd_ = quarter_turned<inverse>(x1 - x3);
        y[0] = even + odd;
        y[stride] = turned<inverse>(even_ + odd_, roots[turn]);
        y[2 * stride] = turned<inverse>(even - odd, roots[2 * turn]);
        y[3 * stride] = turned<inverse>(even_ - odd_, roots[3 * turn]);
      } else if (radix == 2) {
        const cplx<T> x0 = x[0], x1 = x[m];
        y[0] = x0 + x1;
        y[stride] = turned<inverse>(x0 - x1, roots[turn]);
      } else {
        for (uint32_t j = 0; j < radix; ++j) {
          cplx<T> sum = x[0];
          for (uint32_t k = 1; k < radix; ++k)
            sum = sum + turned<inverse>(x[k * m], roots[static_cast<uint64_t>(j) * k % radix * m]);
          y[j * stride] = turned<inverse>(sum, roots[j * turn]);
        }
      }
    }
    __syncthreads();
    stride *= radix;
    cplx<T>* swap = a;
    a = b, b = swap;
  }
  return a;
}

}  // namespace
}  // namespace eigentrace::kernels
