#pragma once
// Rows of [B, T, H, P] times a number a row, and dot products of rows, each operand once: what normalisers
// are on CUDA. A row takes 1 to 32 neighbouring threads, each 16 bytes at a time where all rows are aligned.
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/dispatch.h"
#include "tensor/heads.h"

namespace eigentrace::kernels {
namespace {

template <class T, int width>
struct alignas(sizeof(T) * width) Pack {
  T at[width];
};

template <class T>
struct RowScaleOperands {
  int64_t B, steps, H, P;
  Heads<T> from, other, to;  // other or to without data: no dot product, no scaled row
  int lanes;                 // threads a row: a power of 2
};

/// to = f.factor(b, t, h) from;  f.dot(b, t, h, from·other); once a row, f.row(b, t, h).
template <class T, int width, class F>
__global__ void row_scale_kernel(RowScaleOperands<T> s, F f) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int lane = static_cast<int>(thread % s.lanes);
  const int64_t all = s.B * s.steps * s.H, given = thread / s.lanes;
  const bool here = given < all;
  const int64_t row = here ? given : all - 1;
  const int64_t h = row % s.H, t = row / s.H % s.steps, b = row / s.H / s.steps;
  const T factor = s.to.data ? f.factor(b, t, h) : T(0);
  const T *x = s.from.row(b, h, t), *z = s.other.data ? s.other.row(b, h, t) : nullptr;
  T *y = s.to.data ? s.to.row(b, h, t) : nullptr, sum = 0;
  for (int64_t p = int64_t{lane} * width; p < s.P && here; p += int64_t{s.lanes} * width) {
    Pack<T, width> a = *reinterpret_cast<const Pack<T, width>*>(x + p);
    if (z) {
      const Pack<T, width> c = *reinterpret_cast<const Pack<T, width>*>(z + p);
#pragma unroll
      for (int i = 0; i < width; ++i) sum += a.at[i] * c.at[i];
    }
    if (y) {
#pragma unroll
      for (int i = 0; i < width; ++i) a.at[i] *= factor;
      *reinterpret_cast<Pack<T, width>*>(y + p) = a;
    }
  }
  if (z)
    for (int d = s.lanes / 2; d > 0; d /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, d);
  if (lane != 0 || !here) return;
  if (z) f.dot(b, t, h, sum);
  f.row(b, t, h);
}

/// True iff every row starts at a multiple of `bytes`.
template <class T>
bool rows_aligned(const Heads<T>& x, int64_t bytes) {
  const int64_t elements = bytes / static_cast<int64_t>(sizeof(T));
  return !x.data || (reinterpret_cast<uintptr_t>(x.data) % static_cast<uintptr_t>(bytes) == 0 &&
                     x.batch % elements == 0 && x.time % elements == 0 && x.head % elements == 0);
}

template <class T, class F>
void row_scale(const Context& ctx, int64_t B, int64_t steps, int64_t H, int64_t P, const Heads<T>& from,
               const Heads<T>& other, const Heads<T>& to, const F& f) {
  constexpr int wide = 16 / static_cast<int>(sizeof(T));
  if (B * steps * H == 0) return;
  const bool packed =
      P % wide == 0 && rows_aligned(from, 16) && rows_aligned(other, 16) && rows_aligned(to, 16);
  const int64_t packs = packed ? P / wide : P;
  int lanes = 1;
  while (lanes < 32 && lanes < packs) lanes *= 2;
  const RowScaleOperands<T> s{B, steps, H, P, from, other, to, lanes};
  const unsigned blocks = blocks_for(B * steps * H * lanes, 256);
  if (packed)
    launch(ctx, row_scale_kernel<T, wide, F>, blocks, 256, 0, s, f);
  else
    launch(ctx, row_scale_kernel<T, 1, F>, blocks, 256, 0, s, f);
}

/// to[h] = Σ_r x[r, h] in double; a block a head.
template <class T>
__global__ void head_sums_kernel(const T* x, int64_t rows, int64_t heads, PerStep<T> to) {
  auto* sums = dynamic_shared<double>();
  const int64_t h = blockIdx.x;
  const int i = static_cast<int>(threadIdx.x);
  constexpr int ahead = 16;  // rows asked for at once: a thread has few, and nothing else hides their way
  double sum = 0;
  for (int64_t first = i; first < rows; first += int64_t{ahead} * blockDim.x) {
    T next[ahead];
#pragma unroll
    for (int j = 0; j < ahead; ++j) {
      const int64_t r = first + int64_t{j} * blockDim.x;
      next[j] = r < rows ? x[r * heads + h] : T(0);
    }
#pragma unroll
    for (int j = 0; j < ahead; ++j) sum += static_cast<double>(next[j]);
  }
  sums[i] = sum;
  for (int d = static_cast<int>(blockDim.x) / 2; d > 0; d /= 2) {
    __syncthreads();
    if (i < d) sums[i] += sums[i + d];
  }
  if (i == 0) to.at(0, 0, h) = static_cast<T>(sums[0]);
}

}  // namespace
}  // namespace eigentrace::kernels
#endif
