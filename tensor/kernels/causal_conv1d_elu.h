#pragma once
// The short convolution that makes elu + 1 of a range of its channels as it writes them: the feature map of q
// and k behind it, without a pass of its own.
#include "tensor/kernels.h"

namespace eigentrace::kernels {

/// Channels begin ≤ c < end.
struct ChannelRange {
  int64_t begin = 0, end = 0;
};

/// causal_conv1d, then y ← elu(y) + 1 in the channels of `elu`. Error: the range leaves [0, C].
void causal_conv1d_elu(Context& ctx, const Tensor& x, const Tensor& weight, const Tensor& bias, bool silu,
                       ChannelRange elu, Tensor& y);
/// dx = dy elu′(x) from y = elu(x) + 1 alone: elu′ = min(y, 1)
void elu_backward_of(Context& ctx, const Tensor& y, const Tensor& dy, Tensor& dx);

}  // namespace eigentrace::kernels
