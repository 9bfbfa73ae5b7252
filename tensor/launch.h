#pragma once
// How a kernel is started, and its dynamic shared memory. For kernels/*.cu only.
#ifdef EIGENTRACE_WITH_CUDA
#include <cuda_runtime.h>

#include <type_traits>

#include "tensor/context.h"
#include "tensor/cuda_check.h"

namespace eigentrace {

inline cudaStream_t stream_of(const Context& ctx) { return static_cast<cudaStream_t>(ctx.stream()); }

/// The block's dynamic shared memory, 16-byte aligned.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
#ifdef EIGENTRACE_EMULATE
  return reinterpret_cast<T*>(simt::current.dynamic_shared);
#else
  extern __shared__ __align__(16) unsigned char dynamic_shared_memory[];
  return reinterpret_cast<T*>(dynamic_shared_memory);
#endif
}

/// kernel(arguments…) on the context's stream. `shared`: bytes of dynamic shared memory, up to the device's
/// opt-in limit. Error: CUDA refuses the launch.
template <class... P>
void launch(const Context& ctx, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared,
            const std::type_identity_t<P>&... arguments) {
#ifdef EIGENTRACE_EMULATE
  simt_enqueue(stream_of(ctx), [=] { simt::launch(grid, block, shared, [=] { kernel(arguments...); }); });
#else
  if (shared > 0)  // with a kernel's static memory even little can pass the 48 KB that need no asking
    ET_CUDA(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
  // clang-format off
  kernel<<<grid, block, shared, stream_of(ctx)>>>(arguments...);
  // clang-format on
  ET_CUDA(cudaGetLastError());
#endif
}

/// Blocks of `threads` that cover n items.
inline unsigned blocks_for(int64_t n, int64_t threads) {
  return static_cast<unsigned>((n + threads - 1) / threads);
}

}  // namespace eigentrace
#endif
