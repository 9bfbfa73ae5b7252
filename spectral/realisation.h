#pragma once
// One layer's sequence mixer, relabelled as the dynamical system it is on a batch:
//
//   h_i = Λ_i h_{i−1} + B_i u_i,   y_i = C_i h_i + D u_i,   i = 0..T−1,   h_{−1} = 0.
//
// A Realisation is a factored view of the tensors the layer has computed anyway: never larger than them, and
// valid only inside the callback that hands it out. What is stored is log Λ and log η, never Λ or η.
// Dynamical systems framework: Sieber et al., arXiv 2405.15731. Shape letters: tensor/shape.h; tensors are
// f32 or f64, strided, on any device. Complex numbers are pairs of equally shaped tensors.
#include <cstdint>
#include <variant>
#include <vector>

#include "tensor/tensor.h"

namespace eigentrace {

enum class Family : unsigned char {
  softmax_attention,
  linear_attention,
  norm_attention,
  mamba2,
  mamba2_pseudo_lti,
  mamba1,
  lru,
  s5,
  s4
};
const char* name_of(Family family);

/// Where an attention's normaliser η sits. The outputs are the same, the eigenvalues are not.
enum class Gauge : unsigned char {
  state_normalised,   ///< the study's: λ_i = η_{i−1}/η_i, B_i = k_i/η_i, C_i = q_i
  readout_normalised  ///< λ_i = 1, B_i = k_i, C_i = q_i/η_i
};
const char* name_of(Gauge gauge);

struct ComplexTensor {
  Tensor re, im;
  bool defined() const { return re.defined(); }
  /// Views of the parts of an interleaved tensor [..., 2].
  static ComplexTensor interleaved(const Tensor& pairs);
};

// --- Λ
// ------------------------------------------------------------------------------------------------------

/// Λ_i = exp(log λ_i)·I per head. Mamba-2: log λ = Δ A [B,T,H] (entry 0 meets h_{−1} = 0, yet it is one of
/// the layer's eigenvalues); pseudo-LTI: log λ = −softplus(A) [H].
struct ScalarDecay {
  Tensor log_lambda;
};

/// Λ_i = η_{i−1}/η_i·I per head, log η [B,T,H] (softmax: the row log-sum-exp). log λ_i = log η_{i−1} − log
/// η_i, the difference taken in double, i = 1..T−1: λ_0 does not exist.
struct NormaliserRatio {
  Tensor log_eta;
  Gauge gauge = Gauge::state_normalised;
};

/// Λ = diag(exp(log|λ| + i·arg λ)), the same at every step. log_abs, arg [N]. LRU, S5.
struct Diagonal {
  Tensor log_abs, arg;
};

/// Λ_i[c,s] = exp(Δ_i[c] A[c,s]). delta [B,T,E], a [E,N], a < 0. Mamba-1.
struct Outer {
  Tensor delta, a;
};

/// Λ = Ā_c, one dense N×N matrix a channel: the bilinear map of Δ_c (diag(λ) − P P*), Ā = (2/Δ − λ +
/// PP*)⁻¹(2/Δ + λ − PP*). lambda (Re already clipped as the layer uses it) and p complex [N,D] (a column a
/// channel, as the parameters are stored), log_step [D]: log Δ. One channel's matrix exists at a time. S4.
struct Dplr {
  ComplexTensor lambda, p;
  Tensor log_step;
};

using StateMap = std::variant<ScalarDecay, NormaliserRatio, Diagonal, Outer, Dplr>;

/// Λ alone: what eigenvalues are read from.
struct Lambda {
  Family family = Family::softmax_attention;
  StateMap map;
};

// --- B and C
// ------------------------------------------------------------------------------------------------

/// B_i u_i = scale·w_i k_i v_iᵀ (/η_i), C_i h_i = q_iᵀ h_i (·1/η_i): head h reads group ⌊h·G/H⌋.
/// q, k [B,T,G,N], after feature map and convolution; w [B,T,H] or undefined (1). u = v is [B,T,H,P] and the
/// state of a head [N,P]. η only with NormaliserRatio; its gauge says on which side. Linear and norm
/// attention, Mamba-2 (q = C, k = B, w = Δ) and pseudo-LTI (k = Δ∘B).
struct Factored {
  Tensor q, k, weight;
  double scale = 1;
};

/// κ_ij = exp(scale·q_i·k_j), the state infinite-dimensional; equivalently y_i = Σ_{j≤i} (Π_{l=j+1..i} λ_l)
/// (κ_ij/η_j) v_j. q, k [B,T,H,N], u = v [B,T,H,P]. Softmax attention.
struct Kernel {
  Tensor q, k;
  double scale = 1;
};

/// (B_i u_i)[c,s] = Δ_i[c] b_i[s] u_i[c], y_i[c] = Σ_s c_i[s] h_i[c,s]. b, c [B,T,N], u [B,T,E], Δ from
/// Outer. Mamba-1.
struct Selective {
  Tensor b, c;
};

/// B̄ = diag(gain)·b, y = readout·Re(c h). b complex [N,D], c complex [D,N], u [B,T,D]. gain: [N], undefined
/// (1), or its imaginary part undefined (real): LRU exp(gamma_log), S5 (λ−1)/Λ or Δ/(1−ΔΛ/2). readout: 2
/// with conjugate symmetry, else 1. c_backward [D,N]: defined iff a second scan with the same Λ and B̄ runs
/// from the end (S5 `bidirectional`), its output added. LRU, S5.
struct Dense {
  ComplexTensor b, c, gain, c_backward;
  double readout = 1;
};

/// Per channel B̄ = 2(2/Δ − λ + PP*)⁻¹ b, C̄ = conj(c)(I − Ā^length)⁻¹, y = Re(C̄ h). b, c complex [N,D], u
/// [B,T,D]. length: that of the convolution kernel. S4.
struct Channels {
  ComplexTensor b, c;
  int64_t length = 0;
};

using IoMaps = std::variant<Factored, Kernel, Selective, Dense, Channels>;

struct Realisation {
  Family family = Family::softmax_attention;
  StateMap lambda;
  IoMaps maps;
  Tensor u;  ///< [B,T,H,P] (Factored, Kernel) or [B,T,D]
  /// Feed-through, undefined where y has none: [H] for u [B,T,H,P], [D] for u [B,T,D] (or any shape of D
  /// elements).
  Tensor d;

  int64_t batch() const { return u.dim(0); }
  int64_t steps() const { return u.dim(1); }
  /// Heads of a Factored or Kernel system, else 1.
  int64_t heads() const { return u.rank() == 4 ? u.dim(2) : 1; }
};

/// Error (naming the field, the shape expected and the one found) unless Λ, B, C, D and u fit together.
void check(const Realisation& system);

/// log λ_i = log η_{i−1} − log η_i in double, i = 1..T−1, of one head's log η_0 … log η_{T−1}, `stride`
/// elements apart. Equal infinities (η under- or overflowed twice) give NaN: the ratio is not known.
std::vector<double> log_ratios(const double* log_eta, int64_t steps, int64_t stride);

}  // namespace eigentrace
