#pragma once
// Mamba-2 (SSD, arXiv 2405.21060) and its pseudo-LTI form, on the scalar-decay recurrence. E = expansion·D,
// heads H = expansion·num_heads of width P = D/num_heads, one group:
//
//   [x, B, C, Δ] = in_proj(u), causal convolution and SiLU over x, B, C, Δ = softplus(Δ + dt_bias)
//   S_i = exp(Δ_i A) S_{i−1} + Δ_i B_i x_iᵀ,   y_i = C_i S_i + D x_i,   A = −exp(A_log)
//   pseudo-LTI:   S_i = exp(−softplus(A)) S_{i−1} + (Δ∘B)_i x_iᵀ, state s with the Δ of head ⌊s·H/S⌋
#include "nn/config/model_config.h"
#include "nn/mixer.h"

namespace eigentrace {

struct Mamba2Terms : Terms {
  Var q, k;   ///< C and B (pseudo-LTI: Δ∘B), [B,T,1,S]
  Var v;      ///< x, [B,T,H,P]
  Var dt;     ///< Δ, [B,T,H]
  Var log_a;  ///< log Λ: Δ A [B,T,H], or [H]
};

/// Parameters `name`.in_proj.weight, .conv1d, .dt_bias, .A_log (pseudo-LTI: .A), .D, .out_proj.weight.
std::unique_ptr<Mixer> make_mamba2(ParameterList& list, const std::string& name, const MambaConfig& config);

/// Initial dt_bias: inverse softplus of max(exp(U(log 1e-3, log 1e-1)), 1e-4).
Initialiser init_dt_bias();

}  // namespace eigentrace
