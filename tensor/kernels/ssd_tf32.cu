// The kernels of ssd_chunks.h with products in tf32.
#include "tensor/kernels/ssd_gradients.cuh"
#include "tensor/kernels/ssd_outputs.cuh"
#include "tensor/kernels/ssd_states.cuh"

#ifdef EIGENTRACE_WITH_CUDA
namespace eigentrace::kernels {
template void launch_states<Precision::tf32>(const Context&, const SsdStates&);
template void launch_outputs<Precision::tf32>(const Context&, const SsdPass&);
template void launch_gradients<Precision::tf32>(const Context&, const SsdPass&);
}  // namespace eigentrace::kernels
#endif
