#pragma once
// From a kernel's public function to its typed body, and from a body to its threads. For kernels/*.cu only.
//
// A kernel file reads: equations; a functor or CPU body templated over float and double; a CUDA body behind
// EIGENTRACE_WITH_CUDA where the functor is not enough; last, the public function that dispatches.
#include <cstdint>

#include "tensor/context.h"
#include "tensor/cuda_check.h"
#include "tensor/error.h"
#include "tensor/hd.h"
#include "tensor/launch.h"
#include "tensor/strided.h"

namespace eigentrace {

/// body.operator()<float>() or <double>(), by dtype; nothing in a dry run.
template <class Body>
void dispatch_floating(const Context& ctx, const char* kernel, DType dtype, Body&& body) {
  if (ctx.dry()) return;
  if (dtype == DType::f32)
    body.template operator()<float>();
  else if (dtype == DType::f64)
    body.template operator()<double>();
  else
    fail(std::string(kernel) + ": elements of f32 or f64 expected, found " + name_of(dtype));
}

/// As dispatch_floating, for kernels that read and write bf16 too: body.operator()<BFloat16>(), on CUDA only.
template <class Body>
void dispatch_stored(const Context& ctx, const char* kernel, DType dtype, Body&& body) {
  if (dtype != DType::bf16) return dispatch_floating(ctx, kernel, dtype, body);
  if (!ctx.device().is_cuda()) fail(std::string(kernel) + ": bf16 exists on a GPU only");
#ifdef EIGENTRACE_WITH_CUDA
  if (!ctx.dry()) body.template operator()<BFloat16>();
#endif
}

/// Runs on the CPU what has no CUDA body yet: an error that says so, instead of a silent wrong device.
inline void require_cpu(const Context& ctx, const char* kernel) {
  if (ctx.device().is_cuda()) fail(std::string(kernel) + ": has no CUDA body yet; use --device cpu");
}

#ifdef EIGENTRACE_WITH_CUDA
template <class Functor>
__global__ void for_each_kernel(int64_t n, Functor functor) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) functor(i);
}
#endif

/// functor(i) for i in 0..n−1, each independent of the others: one body for both devices.
/// The functor is a struct of raw pointers with `ET_HD void operator()(int64_t i) const` (no lambda: nvcc
/// would call a host-device lambda through a pointer on the CPU, and nothing would vectorise).
template <class Functor>
void for_each_index(const Context& ctx, int64_t n, const Functor& functor) {
  if (n <= 0) return;
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda()) {
    const int64_t blocks = (n + 255) / 256;
    launch(ctx, for_each_kernel<Functor>, static_cast<unsigned>(blocks < 65536 ? blocks : 65536), 256, 0, n,
           functor);
    return;
  }
#endif
  require_cpu(ctx, "for_each_index");
  constexpr int64_t block = 4096;  // fixed: the split must not depend on the number of threads
  const int64_t blocks = (n + block - 1) / block;
#pragma omp parallel for schedule(static) if (blocks > 1)
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t end = (b + 1) * block < n ? (b + 1) * block : n;
    const Functor f = functor;
#pragma omp simd
    for (int64_t i = b * block; i < end; ++i) f(i);
  }
}

#ifdef EIGENTRACE_WITH_CUDA
template <class Functor>
struct AtRowColumn {
  int64_t columns;
  Functor functor;
  ET_HD void operator()(int64_t i) const { functor(i / columns, i % columns); }
};
#endif

/// functor(a, b, c, d) at the offsets of each element in the index's four tensors, on the CPU, without a
/// division per element. On CUDA: tensor/elements.h.
template <class Functor>
void for_each_offset(const Context& ctx, const StridedIndex& index, const Functor& functor) {
  const int64_t total = index.numel();
  if (total <= 0) return;
  require_cpu(ctx, "for_each_offset");
  constexpr int64_t block = 4096;
  const int last = index.rank - 1;
  const int64_t columns = index.rank == 0 ? 1 : index.size[last], rows = total / columns;
  const int64_t pieces = (columns + block - 1) / block, group = columns < block ? block / columns : 1;
  const int64_t items = (rows + group - 1) / group * pieces;
  int64_t step[4];
  for (int t = 0; t < 4; ++t) step[t] = index.rank == 0 ? 1 : index.stride[t][last];
  const bool tail = step[2] == 1 && step[3] == 1;
#pragma omp parallel for schedule(static) if (items > 1)
  for (int64_t item = 0; item < items; ++item) {
    const Functor f = functor;
    const int64_t first_row = item / pieces * group, begin = item % pieces * block;
    const int64_t last_row = first_row + group < rows ? first_row + group : rows;
    const int64_t n = begin + block < columns ? block : columns - begin;
    for (int64_t row = first_row; row < last_row; ++row) {
      int64_t at[4];
      for (int t = 0; t < 4; ++t) at[t] = index.offset(t, row * columns + begin);
      const int64_t a = at[0], b = at[1], c = at[2], d = at[3];
      if (tail && step[0] == 1 && step[1] == 1) {
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) f(a + i, b + i, c + i, d + i);
      } else if (tail && step[0] == 1 && step[1] == 0) {
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) f(a + i, b, c + i, d + i);
      } else if (tail && step[0] == 0 && step[1] == 1) {
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) f(a, b + i, c + i, d + i);
      } else {
        for (int64_t i = 0; i < n; ++i) f(a + i * step[0], b + i * step[1], c + i * step[2], d + i * step[3]);
      }
    }
  }
}

/// functor(row, column) for all elements of a matrix of rows; vectorised along the columns on the CPU.
template <class Functor>
void for_each_in_rows(const Context& ctx, int64_t rows, int64_t columns, const Functor& functor) {
  if (rows <= 0 || columns <= 0) return;
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda())
    return for_each_index(ctx, rows * columns, AtRowColumn<Functor>{columns, functor});
#endif
  require_cpu(ctx, "for_each_in_rows");
  const int64_t group = columns < 4096 ? 4096 / columns : 1, items = (rows + group - 1) / group;
#pragma omp parallel for schedule(static) if (items > 1)
  for (int64_t item = 0; item < items; ++item) {
    const Functor f = functor;
    const int64_t end = (item + 1) * group < rows ? (item + 1) * group : rows;
    for (int64_t row = item * group; row < end; ++row) {
#pragma omp simd
      for (int64_t column = 0; column < columns; ++column) f(row, column);
    }
  }
}

/// body(r) for r in 0..rows−1 on the CPU's threads; each r writes only its own results.
template <class Body>
void parallel_rows(int64_t rows, const Body& body) {
#pragma omp parallel for schedule(static) if (rows > 1)
  for (int64_t r = 0; r < rows; ++r) body(r);
}

/// As parallel_rows for items of uneven cost (causal blocks): threads take the next item when free.
template <class Body>
void parallel_items(int64_t items, const Body& body) {
#pragma omp parallel for schedule(dynamic, 1) if (items > 1)
  for (int64_t i = 0; i < items; ++i) body(i);
}

}  // namespace eigentrace
