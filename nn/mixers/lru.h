#pragma once
// Linear recurrent unit (arXiv 2303.06349), N = state_dim complex states:
//
//   λ = exp(−exp(nu_log) + i exp(theta_log)),   h_i = λ h_{i−1} + exp(gamma_log)∘(B u_i),   y_i = Re(C h_i) +
//   D∘u_i
#include "autograd/complex.h"
#include "nn/config/model_config.h"
#include "nn/mixer.h"

namespace eigentrace {

/// Terms of the two families on the diagonal scan. The recurrence runs on [Re, Im] of 2N numbers: B̄ u and
/// Re(C h) are one matrix product each.
struct DiagonalTerms : Terms {
  Var log_abs, arg;  ///< [N], log |λ| and arg λ
  Var driven;        ///< B̄ u, [B,T,2N]
  Var output;        ///< LRU: [Re C, −Im C], [D,2N]
  Tensor gain_re;    ///< [N], B̄ = gain∘B
  Tensor gain_im;    ///< [N] or undefined: real gain
};

/// Parameters `name`.nu_log, .theta_log, .gamma_log [N], .B_re, .B_im [N,D], .C_re, .C_im [D,N], .D [D].
std::unique_ptr<Mixer> make_lru(ParameterList& list, const std::string& name, const SsmConfig& config);

/// u [B,T,D] times the complex matrix b [N,D]: [B,T,2N] = [Re, Im].
Var complex_linear(const Var& u, const Complex& b);
/// factor·Re(c h): h [B,T,2N], c complex [D,N] → [B,T,D].
Var real_readout(const Var& h, const Complex& c, double factor);

}  // namespace eigentrace
