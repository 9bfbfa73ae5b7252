#pragma once
// The vocabulary head's training step in TF32 (for bf16 too) where the device has wgmma:
// vocabulary_head_wgmma.cu.
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/context.h"
#include "tensor/kernels.h"
#include "tensor/labelled_rows.h"

namespace eigentrace::kernels {

/// True iff that head takes these sizes in the context's precision on its device.
bool takes_wgmma_head(const Context& ctx, const Tensor& x, const Tensor& weight,
                      const LabelledRows& labelled);
/// vocabulary_head; takes_wgmma_head.
void wgmma_head(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias,
                const LabelledRows& labelled, LossResults results, Tensor& dx, Tensor& dweight,
                Tensor& dbias);

}  // namespace eigentrace::kernels
#endif
