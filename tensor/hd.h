#pragma once
// ET_HD marks a function that runs on the host and, when nvcc compiles the file, on the device too.
#ifdef __CUDACC__
#define ET_HD __host__ __device__ __forceinline__
#else
#define ET_HD inline __attribute__((always_inline))
#endif
