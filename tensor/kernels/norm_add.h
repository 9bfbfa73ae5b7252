#pragma once
// A normalisation's parameters used more than once: their gradients on top of what other uses have sent.
#include "tensor/kernels.h"

namespace eigentrace::kernels {

/// layer_norm_backward, with dweight and dbias = sent + own part where `sent` is defined: a dense tensor of
/// their shape, they themselves or apart from them.
void layer_norm_backward_add(Context& ctx, const NormBackward& n, const Tensor& dweight_sent,
                             const Tensor& dbias_sent);

}  // namespace eigentrace::kernels
