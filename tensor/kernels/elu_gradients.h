#pragma once
// Linear and norm attention of q = elu(x) + 1 and k = elu(z) + 1, backward: elu' = min(q, 1), so that dx and
// dz are written where dq and dk would be, without a pass of their own.
#include "tensor/kernels.h"

namespace eigentrace::kernels {

/// norm_attention_backward with the gradients of x and z in place of dq and dk. Linear attention's is in
/// dropped_attention.h.
void norm_attention_elu_backward(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                                 NormFunction f, const Tensor& n, const Tensor& offset, double scale,
                                 const Tensor& log_eta, const Tensor& dout, Tensor& dx, Tensor& dz,
                                 Tensor& dv, Tensor& dn, Tensor& doffset, const Tensor& kept);

}  // namespace eigentrace::kernels
