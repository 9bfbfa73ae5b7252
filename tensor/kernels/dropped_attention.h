#pragma once
// Linear attention with dropout of its result, in the kernels that write it and that read its gradient.
#include "tensor/kernels.h"

namespace eigentrace::kernels {

/// True iff linear_attention_dropped takes such operands, given attention_is_fused: N ≤ 16.
bool attention_drops(const Tensor& q, const Tensor& v);

/// linear_attention, and out = dropout(out), a draw for each element of [B, T, H, P].
void linear_attention_dropped(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                              const Dropout& drop, Tensor& out, Tensor& log_eta, const Tensor& kept);
/// Its gradients; of_elu: in place of dq and dk those of x and z, q = elu(x) + 1 and k = elu(z) + 1.
void linear_attention_dropped_backward(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                                       const Tensor& log_eta, const Dropout& drop, bool of_elu,
                                       const Tensor& dout, Tensor& dq, Tensor& dk, Tensor& dv,
                                       const Tensor& kept);

}  // namespace eigentrace::kernels
