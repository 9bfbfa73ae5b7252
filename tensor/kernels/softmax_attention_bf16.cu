// Softmax attention's tensor-core kernels with bf16 products: a file of its own, so that it compiles beside
// the others.
#include "tensor/kernels/softmax_attention_backward.cuh"
#include "tensor/kernels/softmax_attention_forward.cuh"

#ifdef EIGENTRACE_WITH_CUDA
namespace eigentrace::kernels {

void attention_tensor_cores_picks(const Context& ctx, const AttentionOperands<float>& a,
                                  const AttentionPicks& picks) {
  constexpr AttentionShape shape = attention_picks_shape;
  launch(ctx, attention_mma_kernel<AttentionBf16, 128, 128, false, true>,
         static_cast<unsigned>(a.size.H * picks.capacity), shape.threads(),
         attention_forward_bytes(shape, Precision::bf16, 128, 128), a, access_of(a, {}), picks);
}

template void attention_mma<AttentionBf16>(const Context&, const AttentionPlan&,
                                           const AttentionOperands<float>&);
template void attention_mma_backward<AttentionBf16>(const Context&, const AttentionPlan&,
                                                    const AttentionOperands<float>&,
                                                    const AttentionGradients<float>&, const AttentionParts&);

}  // namespace eigentrace::kernels
#endif
