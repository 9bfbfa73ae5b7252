#pragma once
// Audit of gradients: float64 central differences against the tape, with random cotangents.
#include <functional>
#include <string>
#include <vector>

#include "autograd/tape.h"

namespace eigentrace {

/// A differentiable function under test: leaves in, values out. It must be a pure function of the leaves.
using TestedFunction = std::function<std::vector<Var>(Tape&, const std::vector<Var>&)>;

struct GradcheckEntry {
  std::string input;  ///< name of the input
  int64_t element;    ///< the worst element, row-major
  double analytic, numeric;
  double error;  ///< |analytic − numeric| / max(‖gradient of this input‖∞, scale)
};

struct GradcheckReport {
  std::vector<GradcheckEntry> worst;  ///< one per input, the worst first
  double max_error() const { return worst.empty() ? 0.0 : worst[0].error; }
};

struct GradcheckOptions {
  double step = 1e-6;         ///< central difference x ± step·max(1, |x|)
  int64_t max_elements = 64;  ///< per input; larger inputs are sampled with the seed
  uint64_t seed = 1;          ///< of cotangents and samples
};

/// The comparison itself: analytic[n] against (loss(x+h) − loss(x−h))/2h for elements of inputs[n] (f64,
/// contiguous, changed and restored in place).
GradcheckReport compare_gradients(const std::function<double()>& loss, const std::vector<Tensor>& inputs,
                                  const std::vector<std::vector<double>>& analytic,
                                  const std::vector<std::string>& names,
                                  const GradcheckOptions& options = {});

/// L = Σ cotangent·output with standard normal cotangents; compares dL/dx of the tape with
/// (L(x+h) − L(x−h))/2h. inputs: float64, contiguous, changed and restored in place.
GradcheckReport gradcheck(Context& ctx, const TestedFunction& f, const std::vector<Tensor>& inputs,
                          const std::vector<std::string>& names, const GradcheckOptions& options = {});

}  // namespace eigentrace
