// Softmax attention's tensor-core kernels with tf32 products: a file of its own, so that it compiles beside
// the others.
#include "tensor/kernels/softmax_attention_backward.cuh"
#include "tensor/kernels/softmax_attention_forward.cuh"

#ifdef EIGENTRACE_WITH_CUDA
namespace eigentrace::kernels {

template void attention_mma<AttentionTf32>(const Context&, const AttentionPlan&,
                                           const AttentionOperands<float>&);
template void attention_mma_backward<AttentionTf32>(const Context&, const AttentionPlan&,
                                                    const AttentionOperands<float>&,
                                                    const AttentionGradients<float>&, const AttentionParts&);

}  // namespace eigentrace::kernels
#endif
