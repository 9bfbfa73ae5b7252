#pragma once
// Recurrences of the state-space families, and S4's kernel and convolution.
#include "autograd/complex.h"
#include "autograd/ops_pointwise.h"
#include "autograd/tape.h"

namespace eigentrace {

/// Diagonal complex recurrence of LRU and S5: h_i = λ h_{i−1} + x_i, λ = exp(log_abs + i arg), h_{−1} = 0;
/// with reverse, i runs backwards in time. x [B,T,2N] rows, each [re, im]; log_abs, arg [N] → h [B,T,2N]
/// dense. Linear in T; parallel over B, blocks of N and segments of T, cut by shape alone. Kept: h. Errors:
/// shapes. float32: powers of λ across segments are taken in double.
Var diagonal_scan(const Var& x, const Var& log_abs, const Var& arg, bool reverse = false);

/// Discrete λ = exp(log_abs + i arg) and the factor of B of a diagonal continuous system, Δ = exp(log_step)
/// (S5, arXiv 2208.04933, eq. 6): zero-order hold λ = exp(ΛΔ), factor (λ−1)/Λ; bilinear λ =
/// (1+ΛΔ/2)/(1−ΛΔ/2), factor Δ/(1−ΛΔ/2). Re Λ ≤ −1e−4 in use if clip (no gradient where clipped). All [N]
/// (log_step also [N,1]); computed in double.
struct Discretised {
  Var log_abs, arg;
  Complex factor;
};
Discretised s5_discretise(const Var& lambda_re, const Var& lambda_im, const Var& log_step, bool bilinear,
                          bool clip);

/// Mamba-1's scan (arXiv 2312.00752): h_i[c,s] = exp(δ_i[c] A[c,s]) h_{i−1}[c,s] + δ_i[c] B_i[s] x_i[c],
/// y_i[c] = Σ_s C_i[s] h_i[c,s] + D[c] x_i[c], A = −exp(a_log). x, delta [B,T,E], a_log [E,S], b, c [B,T,S],
/// d [E] → y [B,T,E] dense. Kept: operands and the state before every 64th step; the others are recomputed.
Var selective_scan(const Var& x, const Var& delta, const Var& a_log, const Var& b, const Var& c,
                   const Var& d);

/// Step size and decay of Mamba-2 (arXiv 2405.21060): Δ = softplus(x + bias), log_a = −exp(a_log) Δ. x rows
/// [..., H], bias, a_log [H] → both [..., H] dense. Kept: operands.
struct SelectiveStep {
  Var delta, log_a;
};
SelectiveStep selective_step(const Var& x, const Var& bias, const Var& a_log);

/// S4's convolution kernel of `length` taps (arXiv 2111.00396): DPLR parameters lambda_re, lambda_im [N,D],
/// p, b, c [N,D,2], log_step [1,D] → K [D, length]. Re Λ ≤ −1e−4 in use (no gradient where clipped). Computed
/// in double. Cost N·D·length. Gradients of complex parameters are (dL/dRe, dL/dIm).
Var s4_kernel(const Var& lambda_re, const Var& lambda_im, const Var& p, const Var& b, const Var& c,
              const Var& log_step, int64_t length);

/// y_t = Σ_{j≤t} K_j u_{t−j} + D u_t. u [B,T,D] rows, k [D,L], any L and T, d [D] (or [1,D]) or undefined →
/// y [B,T,D] dense. T log T; error below 8·eps·log₂(2T)·‖K‖₁·max|u|. Kept: u, k, d.
Var fft_convolution(const Var& u, const Var& k, const Var& d);

/// Feed-through of a state-space layer: z = y + d∘u. y, u [..., D] of one shape, d [D]. Kept: u, d.
Var channel_skip(const Var& y, const Var& u, const Var& d);
/// channel_skip and activation(f, z, dropout, mask) in one pass over memory. Kept: u, d, z, or without z (it
/// is undefined then, and a write less) y.
struct Skipped {
  Var z, active;
};
Skipped channel_skip_activation(const Var& y, const Var& u, const Var& d, Unary f, double dropout,
                                DropoutMask mask, bool with_z = true);

/// What an LRU (arXiv 2303.06349) computes with, from its parameters nu_log, theta_log, gamma_log [N], B_re,
/// B_im [N,D], C_re, C_im [D,N]: log|λ| = −exp(nu_log), arg λ = exp(theta_log) [N]; input = exp(gamma_log)∘B
/// as [Re; Im] [2N,D], output = [Re C, −Im C] [D,2N].
struct LruMaps {
  Var log_abs, arg, input, output;
  Tensor gain;  ///< exp(gamma_log) [N]
};
LruMaps lru_maps(const Var& nu_log, const Var& theta_log, const Var& gamma_log, const Complex& b,
                 const Complex& c);

}  // namespace eigentrace
