#pragma once
// channel_skip_activation where nobody wants z = y + d u: it is called with z undefined, y is kept in its
// place.
#include "tensor/kernels.h"

namespace eigentrace::kernels {

/// dy = f′(y + d u) dropout(dg), written; du = d dy + sent (unless undefined), dd: or undefined.
void channel_skip_activation_backward_from_y(Context& ctx, const Tensor& y, const Tensor& u, const Tensor& d,
                                             Unary f, const Dropout& drop, const Tensor& dg, Tensor& dy,
                                             Tensor& du, Tensor& dd, const Tensor& sent);

}  // namespace eigentrace::kernels
