#pragma once
// Matrix products.
#include "autograd/tape.h"

namespace eigentrace {

/// y = x Wᵀ + b. x [..., in] (rows), weight [out, in], bias [out] or undefined → [..., out], rows
/// (kernels::empty_rows).
/// weight may be a transposed view (a Dense kernel [in, out] is `transpose(kernel, 0, 1)`): products take
/// either layout, and the gradient is written in it. Kept: x, weight.
Var linear(const Var& x, const Var& weight, const Var& bias);

/// C = A B. a [..., M, K], b [..., K, N] with equal leading axes → [..., M, N] dense. Last two axes may be
/// transposed.
Var matmul(const Var& a, const Var& b);

}  // namespace eigentrace
