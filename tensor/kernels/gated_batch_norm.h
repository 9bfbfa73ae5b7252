#pragma once
// A gate and the BatchNorm after it: the pass that makes the gate's result takes its moments, the pass that
// makes its gradient the gate's own gradients.
#include "tensor/kernels.h"

namespace eigentrace::kernels {

/// x = gate(g), written, then batch_norm(n) of it.
void gated_batch_norm(Context& ctx, const Gate& g, const BatchNorm& n);
/// dx, which is the residual's gradient too; da, dz: undefined if not wanted. g.residual is not read.
void gated_batch_norm_backward(Context& ctx, const Gate& g, const BatchNorm& n, const Tensor& dy, Tensor& dx,
                               Tensor& da, Tensor& dz, Tensor& dweight, Tensor& dbias);

}  // namespace eigentrace::kernels
