#pragma once
// S4 (arXiv 2111.00396), diagonal plus low rank, an independent system of N = state_dim states a channel:
//
//   y = u ∗ K + D u,   K from Λ, P, B, C, Δ = exp(log_step) and the sequence's length (autograd/ops_scan.h)
//
// Equivalently h_i = Ā h_{i−1} + B̄ u_i with the bilinear Ā of A = diag(Λ) − PP*, and the read-out conj(C)(I −
// Ā^L)⁻¹: the stored C is the truncated one, so the length is part of the model.
#include "nn/config/model_config.h"
#include "nn/mixer.h"

namespace eigentrace {

struct S4Terms : Terms {
  Var kernel;  ///< [D,T]
};

/// Parameters `name`.Lambda_re, .Lambda_im [N,D], .P, .B [N,D,2] complex, .C [N,D,2], .D, .log_step [1,D].
std::unique_ptr<Mixer> make_s4(ParameterList& list, const std::string& name, const SsmConfig& config);

}  // namespace eigentrace
