// The kernels of ssd_chunks.h with products in fp32.
#include "tensor/kernels/ssd_gradients.cuh"
#include "tensor/kernels/ssd_outputs.cuh"
#include "tensor/kernels/ssd_states.cuh"

#ifdef EIGENTRACE_WITH_CUDA
namespace eigentrace::kernels {
template void launch_states<Precision::fp32>(const Context&, const SsdStates&);
template void launch_outputs<Precision::fp32>(const Context&, const SsdPass&);
template void launch_gradients<Precision::fp32>(const Context&, const SsdPass&);
}  // namespace eigentrace::kernels
#endif
