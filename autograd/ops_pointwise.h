#pragma once
// Pointwise ops and sums.
#include "autograd/tape.h"
#include "tensor/kernels.h"

namespace eigentrace {

using kernels::Binary;
using kernels::Unary;

/// y = x in another floating type (float32 and bf16); x itself if it has it. The gradient is cast back.
Var cast(const Var& x, DType dtype);
/// x as what ops hand to each other in this context (Context::activation_type): where a float32 value becomes
/// one of a model's activations.
Var activations(const Var& x);
/// x in float32 if it is bf16: numbers per head, decays, losses.
inline Var widen(const Var& x) { return cast(x, arithmetic_type(x.dtype())); }

/// y = f(x), any shape. Kept for backward: x.
Var unary(Unary f, const Var& x);

/// y = a ∘ b with NumPy's broadcasting; da and db are summed over the axes they were broadcast along. bf16
/// beside float32 is widened.
/// Kept: a and b (× and ÷), nothing (+ and −).
Var binary(Binary f, const Var& a, const Var& b);
inline Var add(const Var& a, const Var& b) { return binary(Binary::add, a, b); }
inline Var sub(const Var& a, const Var& b) { return binary(Binary::sub, a, b); }
inline Var mul(const Var& a, const Var& b) { return binary(Binary::mul, a, b); }
inline Var div(const Var& a, const Var& b) { return binary(Binary::div, a, b); }

/// y = factor · x.
Var scale(const Var& x, double factor);

/// Which elements of x share one draw: every element its own, or x [B,T,D] one draw for all T of (b, d).
enum class DropoutMask : unsigned char { element, shared_over_time };

/// y = x · mask / (1 − p), mask recomputed in the backward pass. p = 0: x itself.
/// The mask is Philox(seed, step; op, element) compared as an integer: equal on every device. Error: p
/// outside [0, 1).
Var dropout(const Var& x, double p, DropoutMask mask = DropoutMask::element);

/// dropout(unary(f, x), p, mask) in one pass over memory. Kept: x.
Var activation(Unary f, const Var& x, double p, DropoutMask mask = DropoutMask::element);

/// What joins a gate in its pass: a residual (undefined: none), dropout of the gated value.
struct GateOptions {
  Var residual = {};
  double dropout = 0;
  DropoutMask mask = DropoutMask::element;
};
/// y = residual + dropout(a ∘ f(z)), equal shapes, f sigmoid or silu. Kept: a and z.
Var gate(Unary f, const Var& a, const Var& z, const GateOptions& options = {});

/// Gated linear unit: [..., 2D] → [..., D], y = a · σ(b), a and b the halves of x. Kept: x.
Var glu(const Var& x);

/// Sum over `axis` (kept as size 1 if keep). Fixed order: the same bits for any number of threads.
Var sum(const Var& x, int axis, bool keep = false);

}  // namespace eigentrace
