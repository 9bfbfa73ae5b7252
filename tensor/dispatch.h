#pragma once
// From a kernel's public function to its typed body, and from a body to its threads. For kernels/*.cu only.
//
// A kernel file reads: equations; a functor or CPU body templated over float and double; a CUDA body behind
// __CUDACC__ where the functor is not enough; last, the public function that dispatches.
#include <cstdint>

#include "tensor/context.h"
#include "tensor/cuda_check.h"
#include "tensor/error.h"
#include "tensor/hd.h"

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

/// Runs on the CPU what has no CUDA body yet: an error that says so, instead of a silent wrong device.
inline void require_cpu(const Context& ctx, const char* kernel) {
  if (ctx.device().is_cuda()) fail(std::string(kernel) + ": has no CUDA body yet; use --device cpu");
}

#ifdef __CUDACC__
inline cudaStream_t stream_of(const Context& ctx) { return static_cast<cudaStream_t>(ctx.stream()); }

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
#ifdef __CUDACC__
  if (ctx.device().is_cuda()) {
    const int64_t blocks = (n + 255) / 256;
    for_each_kernel<<<static_cast<unsigned>(blocks < 65536 ? blocks : 65536), 256, 0, stream_of(ctx)>>>(
        n, functor);
    ET_CUDA(cudaGetLastError());
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
