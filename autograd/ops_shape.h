#pragma once
// Ops that move no number: the result is a view, and its gradient is written straight into the operand's.
#include <vector>

#include "autograd/tape.h"

namespace eigentrace {

/// Same elements in row-major order, another shape.
Var reshape(const Var& x, const Shape& shape);

/// Cuts the last axis into consecutive ranges of the given widths. [..., ΣW] → [..., W₀], [..., W₁], …
/// Error: the widths do not add up to the last axis.
std::vector<Var> split(const Var& x, const std::vector<int64_t>& widths);

/// Axes a and b exchanged, as a view.
Var transpose(const Var& x, int a, int b);

/// Parts side by side on the last axis. [..., W₀], [..., W₁], … → [..., ΣW]. A copy.
Var concat(const std::vector<Var>& parts);
/// A concat of each group, all copied together: a launch for eight parts instead of one for each.
std::vector<Var> concat_each(const std::vector<std::vector<Var>>& groups);

}  // namespace eigentrace
