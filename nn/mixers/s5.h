#pragma once
// S5 (arXiv 2208.04933): one diagonal complex system of N states from `num_blocks` HiPPO blocks:
//
//   λ, f from Λ and Δ = exp(log_step) (zero-order hold or bilinear),   h_i = λ h_{i−1} + f∘(B u_i)
//   y_i = 2 Re(C h_i) + D u_i with conj_sym (each state stands for a conjugate pair), Re(C h_i) + D u_i
//   without bidirectional: + the same from the end, h⃖_i = λ h⃖_{i+1} + f∘(B u_i), with a C of its own
#include "nn/mixers/lru.h"

namespace eigentrace {

/// Parameters `name`.Lambda_re, .Lambda_im [N], .B [N,D,2], .C [D,N,2] (bidirectional: .C1, .C2, or .C
/// [D,2N,2] with complex_normal), .D [D], .log_step [N,1].
std::unique_ptr<Mixer> make_s5(ParameterList& list, const std::string& name, const SsmConfig& config);

}  // namespace eigentrace
