#pragma once
// Normalisations.
#include "autograd/ops_pointwise.h"

namespace eigentrace {

/// y = (x − mean)/√(var + ε) · weight + bias over the last axis. x [..., D], weight and bias [D].
/// Kept: x, mean and 1/√(var + ε) per row.
Var layer_norm(const Var& x, const Var& weight, const Var& bias, double epsilon);

/// y = x / √(mean(x²) + ε) · weight over the last axis. x [..., D], weight [D]. Kept: x, 1/√… per row.
Var rms_norm(const Var& x, const Var& weight, double epsilon);

struct ResidualNorm {
  Var sum;     ///< x + dropout(branch)
  Var normed;  ///< layer_norm(sum)
};
/// Residual, dropout of the branch and LayerNorm in one pass; the backward pass adds the gradient of `sum`
/// itself. Kept: sum, mean and 1/√(var + ε) per row. x may be undefined where dropout > 0: the branch alone.
ResidualNorm residual_layer_norm(const Var& x, const Var& branch, double dropout, const Var& weight,
                                 const Var& bias, double epsilon);

/// residual_layer_norm(x, glu(both), 0, weight, bias, epsilon), both [..., 2D]; on a GPU glu's result never
/// reaches memory. Kept: both and what residual_layer_norm keeps.
ResidualNorm residual_layer_norm_of_glu(const Var& x, const Var& both, const Var& weight, const Var& bias,
                                        double epsilon);

/// Running statistics of a BatchNorm, [D] each, in memory of their own (no step memory); initially 0 and 1.
struct RunningStatistics {
  Tensor mean, var;
};
/// y = (x − mean)/√(var + ε) · weight + bias, mean and biased variance of each column over all rows of x
/// [..., D]. running ← momentum · running + (1 − momentum) · batch, at once (undefined: not kept). Kept: x,
/// mean, 1/√….
Var batch_norm(const Var& x, const Var& weight, const Var& bias, const RunningStatistics& running,
               double momentum, double epsilon);
/// batch_norm(gate(f, a, z, options)); on a GPU neither the moments nor the gate's gradients take a pass over
/// memory of their own. Kept: a, z, the gate's result, mean, 1/√….
Var gated_batch_norm(Unary f, const Var& a, const Var& z, const GateOptions& options, const Var& weight,
                     const Var& bias, const RunningStatistics& running, double momentum, double epsilon);
/// Evaluation: batch_norm with the running statistics, which stay as they are.
Var batch_norm_evaluation(const Var& x, const Var& weight, const Var& bias, const RunningStatistics& running,
                          double epsilon);

}  // namespace eigentrace
