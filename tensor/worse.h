#pragma once
// The error of many numbers as one.
#include <cmath>

namespace eigentrace {

/// The larger; NaN is larger than all else, and stays so. std::max, std::fmax and comparisons lose it.
inline double worse(double a, double b) { return std::isnan(a) || a > b ? a : b; }

}  // namespace eigentrace
