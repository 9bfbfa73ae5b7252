#pragma once
// The kernels that carry the attention families and Mamba-2.
#include "autograd/tape.h"
#include "tensor/kernels.h"

namespace eigentrace {

struct Labels;  // autograd/ops_loss.h

struct Attended {
  Var y;       ///< [B,T,H,P]
  Tensor lse;  ///< [B,T,H], log Σ_{j≤i} exp(scale q_i·k_j): log η of the dynamical system
  Var rows;    ///< [1,M,H,P], y at the labelled rows if there are labels, zero where the weight is 0
};
/// Causal softmax attention, memory linear in T: y_i = Σ_{j≤i} p_ij v_j, p_ij = exp(scale q_i·k_j − lse_i),
/// with dropout on p if p > 0. q, k [B,T,H,N], v [B,T,H,P]; strided, last axis dense. Kept: q, k, v, y, lse.
/// The gradient of `rows` goes straight to q, k and v, for these queries alone where the device can.
/// rows_alone: nobody reads y and lse, which then may be undefined; `rows` has the same bits.
Attended softmax_attention(const Var& q, const Var& k, const Var& v, double scale, double dropout,
                           const Labels* labels = nullptr, bool rows_alone = false);

/// Scalar-decay linear recurrence, per batch and head (head h reads group ⌊h·G/H⌋ of q and k):
///   S_i = exp(log_a_i) S_{i−1} + w_i k_i v_iᵀ,   y_i = q_i S_i,   S_{−1} = 0
/// q, k [B,T,G,N], v [B,T,H,P], log_a ≤ 0 as [B,T,H] or [H] or undefined (a ≡ 1), w [B,T,H] or undefined (w ≡
/// 1) → y [B,T,H,P] dense. Chunked: time and memory linear in T; the states before all chunks are made again
/// in the backward pass, or kept for it (CUDA). skip [H] or undefined: y_i + skip v_i, in the same pass where
/// the device allows.
Var ssd(const Var& q, const Var& k, const Var& v, const Var& log_a, const Var& w, const Var& skip = {});

/// log η_i = log(q_i · Σ_{j≤i} k_j), positive q and k [B,T,H,N] → [B,T,H]; running sums in the element type.
Var attention_normaliser(const Var& q, const Var& k);

/// y_i exp(−log η_i): y [B,T,H,P], log_eta [B,T,H].
Var divide_by_eta(const Var& y, const Var& log_eta);

using kernels::NormFunction;  // exp, elu, softplus, sigmoid
struct NormScaled {
  Var y;           ///< [B,T,H,P]
  Tensor log_eta;  ///< [B,T,H], f(n + o), at most the largest finite number
};
/// y_i ← scale · exp(−f(n_i + o)) y_i. y [B,T,H,P], n [B,T,H], offset [H] or undefined. The factor and its
/// derivative never form ∞·0 (for f = exp the derivative is −exp(x − eˣ)); factors that underflow are exactly
/// 0.
NormScaled norm_scale(const Var& y, NormFunction f, const Var& n, const Var& offset, double scale);

struct Normalised {
  Var y;           ///< [B,T,H,P]
  Tensor log_eta;  ///< [B,T,H]
};
/// q = elu(x) + 1 and k = elu(z) + 1, where that is known: one op then hands gradients to x and z at once.
struct EluOf {
  Var x, z;
};
/// divide_by_eta(ssd(q, k, v), attention_normaliser(q, k)): one op where kernels::attention_is_fused, else
/// those three. dropout: of y at the end, a draw for each element, in the same op where
/// kernels::attention_drops.
Normalised linear_attention(const Var& q, const Var& k, const Var& v, const EluOf& of = {},
                            double dropout = 0);
/// norm_scale(ssd(q, k, v), f, n, offset, scale): one op where kernels::attention_is_fused, else those two.
Normalised norm_attention(const Var& q, const Var& k, const Var& v, NormFunction f, const Var& n,
                          const Var& offset, double scale, const EluOf& of = {});

}  // namespace eigentrace
