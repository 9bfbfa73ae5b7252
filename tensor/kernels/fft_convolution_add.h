#pragma once
// The long convolution's gradient on top of what other consumers of its input have sent.
#include "tensor/context.h"

namespace eigentrace::kernels {

/// fft_convolution_backward with du + sent for du; sent a tensor of du's shape, du itself or apart from it,
/// or undefined.
void fft_convolution_backward_add(Context& ctx, const Tensor& u, const Tensor& k, const Tensor& d,
                                  const Tensor& dy, const Tensor& sent, Tensor& du, Tensor& dk, Tensor& dd,
                                  const Tensor& kept);

}  // namespace eigentrace::kernels
