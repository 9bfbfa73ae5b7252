#pragma once
// One table of cases for every op: the tests loop over it, and so does `eigentrace gradcheck`.
#include <functional>
#include <string>
#include <vector>

#include "autograd/gradcheck.h"
#include "autograd/op.h"
#include "tensor/rng.h"

namespace eigentrace {

/// What products in this precision round an operand by: 2⁻¹¹ (TF32), 2⁻⁹ (bf16); 0 where float32's own
/// accuracy is kept.
double operand_rounding(Precision precision);

/// A case with its numbers: float64 inputs (those whose gradients are checked) and a pure function of them.
/// The function takes its type from the inputs, so that the same instance runs in float32; integer operands
/// (tokens, labels) are captured, on the device asked for.
struct OpInstance {
  TestedFunction function;
  std::vector<Tensor> inputs;
  std::vector<std::string> names;
};

struct OpCase {
  std::string name;  ///< "binary: mul, a row vector broadcast"
  Op op;
  /// Shapes (odd ones: 1, 7, 63, 100, …) and values are functions of the seed.
  std::function<OpInstance(uint64_t seed, Device device)> make;
  double tolerance = 1e-7;  ///< of gradcheck's relative error
  /// Bound on |y₃₂ − y₆₄| and |dx₃₂ − dx₆₄| / max(1, ‖y₆₄‖∞); 0: do not compare (ties, branches).
  double float32_tolerance = 2e-5;
  /// The same bound where products round their operands by u: float32's plus 16 u. A sum of K ≤ 100 products
  /// of normal numbers is wrong by 5 u of the largest one at the most, and up to four products follow each
  /// other.
  double bound(Precision precision) const;
};

/// All cases, theme by theme.
std::vector<OpCase> op_cases();

// The themes, each in autograd/op_cases_<theme>.cpp; a new theme is a line here and one in op_cases.cpp.
std::vector<OpCase> op_cases_shape();
std::vector<OpCase> op_cases_pointwise();
std::vector<OpCase> op_cases_norm();
std::vector<OpCase> op_cases_sequence();
std::vector<OpCase> op_cases_scan();
std::vector<OpCase> op_cases_matrix();
std::vector<OpCase> op_cases_attention();
std::vector<OpCase> op_cases_loss();

/// Gradient check of one case. Error: the case's function throws.
GradcheckReport check_case(Context& ctx, const OpCase& op_case, uint64_t seed);

/// Outputs of a case, then the gradients of its inputs for cotangents that the seed fixes, in double.
using OpResults = std::vector<std::vector<double>>;
/// Computes the case in `dtype` on the context's device. Error: the case's function throws.
OpResults run_case(Context& ctx, const OpCase& op_case, DType dtype, uint64_t seed);
/// max over results of ‖found − exact‖∞ / max(1, ‖exact‖∞); infinite where a NaN is or sizes differ.
double largest_difference(const OpResults& found, const OpResults& exact);

// What `make` is written with.
Tensor normal_tensor(Rng& rng, const Shape& shape, Device device);
Tensor uniform_tensor(Rng& rng, const Shape& shape, double low, double high, Device device);
/// One of 1, 2, 7, 63, 100 no larger than `most`.
int64_t odd_size(Rng& rng, int64_t most = 100);

}  // namespace eigentrace
