#pragma once
// Every kernel of the house, once, by theme. Bodies: kernels/<file>.cu.
//
// Conventions. Outputs are allocated by the caller and overwritten (accumulate is the exception its name
// tells). Floating operands of one call share one dtype (f32 or f64). "rows": all axes but the last collapse
// to rows a fixed stride apart and the last axis is dense; operands are rows unless their line says dense
// (contiguous) or strided. The gradient of x is dx. Nothing allocates except step memory through ctx.empty.
// Shape letters: tensor/shape.h.
#include "tensor/context.h"

namespace eigentrace::kernels {

// --- memory (kernels/memory.cu)
// ------------------------------------------------------------------------------
void fill(Context& ctx, Tensor& y, double value);           ///< y = value, strided
void copy(Context& ctx, const Tensor& x, Tensor& y);        ///< y = x, strided
void accumulate(Context& ctx, const Tensor& x, Tensor& y);  ///< y += x, strided

// --- pointwise (kernels/unary.cu)
// ----------------------------------------------------------------------------
/// The pointwise functions and, in unary.cu, their derivatives in one table.
enum class Unary : unsigned char {
  neg,
  exp,
  relu,
  sigmoid,
  silu,
  gelu,
  gelu_tanh,
  softplus,
  elu,
  elu_plus_one
};
const char* name_of(Unary f);
void unary(Context& ctx, Unary f, const Tensor& x, Tensor& y);  ///< y = f(x)
/// dx = dy · f′(x)
void unary_backward(Context& ctx, Unary f, const Tensor& x, const Tensor& dy, Tensor& dx);

enum class Binary : unsigned char { add, sub, mul, div };
const char* name_of(Binary f);

// --- binary.cu, glu.cu, dropout.cu, reduce.cu
void binary(Context& ctx, Binary f, const Tensor& a, const Tensor& b, Tensor& y);  ///< y = a ∘ b, strided
/// db = −dy a / b², strided
void div_backward_b(Context& ctx, const Tensor& dy, const Tensor& a, const Tensor& b, Tensor& db);
void scale(Context& ctx, const Tensor& x, double factor, Tensor& y);  ///< y = factor · x, strided
void glu(Context& ctx, const Tensor& x, Tensor& y);                   ///< y = a σ(b), [a, b] = x
void glu_backward(Context& ctx, const Tensor& x, const Tensor& dy, Tensor& dx);
/// y = x · mask(op) / (1 − p), strided; the backward pass is the same map of dy. See tensor/dropout_stream.h.
void dropout(Context& ctx, const Tensor& x, double p, uint32_t op, bool shared_over_time, Tensor& y);
/// y = Σ x over one axis (dropped or of size 1 in y), fixed order. y dense.
void sum(Context& ctx, const Tensor& x, int axis, Tensor& y);

}  // namespace eigentrace::kernels
