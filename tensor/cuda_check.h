#pragma once
// ET_CUDA(call): an Error with the call, CUDA's words and the place. Empty without nvcc.
#ifdef EIGENTRACE_WITH_CUDA
#include <cuda_runtime.h>

#include <string>

#include "tensor/error.h"

#define ET_CUDA(call)                                                                                  \
  do {                                                                                                 \
    const cudaError_t status_ = (call);                                                                \
    if (status_ != cudaSuccess)                                                                        \
      ::eigentrace::fail(std::string(#call) + ": " + cudaGetErrorString(status_) + " (" __FILE__ ":" + \
                         std::to_string(__LINE__) + ")");                                              \
  } while (0)
#endif
