// The kernels of ssd_chunks.h with products in tf32x3.
#include "tensor/kernels/ssd_gradients.cuh"
#include "tensor/kernels/ssd_outputs.cuh"
#include "tensor/kernels/ssd_states.cuh"

#ifdef EIGENTRACE_WITH_CUDA
namespace eigentrace::kernels {
template void launch_states<Precision::tf32x3>(const Context&, const SsdStates&);
template void launch_outputs<Precision::tf32x3>(const Context&, const SsdPass&);
template void launch_gradients<Precision::tf32x3>(const Context&, const SsdPass&);
}  // namespace eigentrace::kernels
#endif
