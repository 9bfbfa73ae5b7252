#pragma once
// Softmax, linear and norm attention: one projection of q, k and v, an optional short convolution, then
//
//   softmax  y_i = Σ_{j≤i} exp(q_i·k_j/√d) v_j / η_i,   η_i = Σ_{j≤i} exp(q_i·k_j/√d)
//   linear   y_i = Σ_{j≤i} φ(q_i)·φ(k_j) v_j / η_i,     η_i = Σ_{j≤i} φ(q_i)·φ(k_j),  φ = elu + 1
//   norm     y_i = s Σ_{j≤i} ψ(q_i)·ψ(k_j) v_j / η_i,   η_i = exp(f(n_i + o))
//
// d = S/H. As a dynamical system (arXiv 2405.15731): λ_i = η_{i−1}/η_i in the gauge that normalises the
// state.
#include "autograd/ops_attention.h"
#include "nn/config/model_config.h"
#include "nn/mixer.h"

namespace eigentrace {

struct AttentionTerms : Terms {
  Var q, k;  ///< [B,T,H,S/H], after convolution and feature map
  Var v;     ///< [B,T,H,D/H], after convolution
  EluOf of;  ///< what q and k are elu + 1 of, if they are
  Var n;     ///< [B,T,H], norm attention only
};

/// Parameters `name`.Wqkv (norm: Wvqkn), .conv1d, .inner_attn.offset, .out_proj.
std::unique_ptr<Mixer> make_attention(ParameterList& list, const std::string& name,
                                      const TransformerConfig& config);

/// Initial offsets of norm attention's H heads.
std::vector<double> initial_offsets(OffsetInit kind, int64_t heads);

}  // namespace eigentrace
