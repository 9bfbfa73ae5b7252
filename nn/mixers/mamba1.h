#pragma once
// Mamba-1 (selective scan S6, arXiv 2312.00752), E = expansion·D channels of S states, R = ⌈D/16⌉:
//
//   [x, z] = in_proj(u), causal convolution and SiLU over x,   [r, B, C] = x_proj(x),   Δ =
//   softplus(dt_proj(r)) h_i[c,s] = exp(Δ_i[c] A[c,s]) h_{i−1}[c,s] + Δ_i[c] B_i[s] x_i[c],   A = −exp(A_log)
//   y = out_proj((C·h + D x) silu(z))
#include "nn/config/model_config.h"
#include "nn/mixer.h"

namespace eigentrace {

struct Mamba1Terms : Terms {
  Var x, z, delta;  ///< [B,T,E]
  Var b, c;         ///< [B,T,S]
};

/// Parameters `name`.in_proj.weight, .conv1d, .x_proj.weight, .dt_proj, .A_log, .D, .out_proj.weight.
std::unique_ptr<Mixer> make_mamba1(ParameterList& list, const std::string& name, const MambaConfig& config);

}  // namespace eigentrace
