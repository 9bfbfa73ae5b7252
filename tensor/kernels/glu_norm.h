#pragma once
// LayerNorm's residual form of a branch that is a gated linear unit.
#include "tensor/kernels.h"

namespace eigentrace::kernels {

/// layer_norm of x + glu(both), both [..., 2D]; n.x given, n.branch and n.p are not looked at.
void glu_layer_norm(Context& ctx, const NormForward& n, const Tensor& both);

}  // namespace eigentrace::kernels
