#pragma once
// The input's gradient of a linear layer on top of what other consumers of the input have sent.
#include "tensor/context.h"

namespace eigentrace::kernels {

/// dx = dy W + sent, sent a tensor of dx's shape, dx itself or apart from it, or undefined: dx = dy W.
void linear_backward_input_add(Context& ctx, const Tensor& dy, const Tensor& weight, const Tensor& sent,
                               Tensor& dx);

}  // namespace eigentrace::kernels
