#pragma once
// Sums over the threads of a CUDA block, in a fixed order. For kernels/*.cu only.
#ifdef EIGENTRACE_WITH_CUDA
#include <cuda_runtime.h>

namespace eigentrace {

/// Σ of `value` over the block's threads (a power of two, at most 256), to all of them.
template <class T>
__device__ T block_sum(T value) {
  __shared__ T shared[256];
  const unsigned i = threadIdx.x;
  __syncthreads();  // the last call's result has been read
  shared[i] = value;
  __syncthreads();
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    if (i < half) shared[i] += shared[i + half];
    __syncthreads();
  }
  return shared[0];
}

}  // namespace eigentrace
#endif
