#pragma once
// Several small copies in one launch.
#include <utility>
#include <vector>

#include "tensor/context.h"

namespace eigentrace::kernels {

/// to = from for each pair {from, to} of equal shapes and types, any strides, none overlapping; of one type.
void copy_each(Context& ctx, const std::vector<std::pair<Tensor, Tensor>>& pairs);

}  // namespace eigentrace::kernels
