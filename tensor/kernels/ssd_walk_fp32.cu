// The walk of ssd_walk.h with products in fp32.
#include "tensor/kernels/ssd_walk.cuh"

#ifdef EIGENTRACE_WITH_CUDA
namespace eigentrace::kernels {
template void launch_walk<Precision::fp32>(const Context&, const Walk&, int, size_t, dim3);
}
#endif
