#pragma once
// Complex values on a tape: pairs of real ones. Arithmetic on small tensors only (parameters); long sequences
// of complex numbers are one real tensor [..., 2N] = [re, im] and go through the ops of ops_scan.h.
#include "autograd/ops_pointwise.h"
#include "autograd/ops_shape.h"

namespace eigentrace {

struct Complex {
  Var re, im;
};

/// x [..., 2] → (x[..., 0], x[..., 1]), dense copies.
Complex complex_parts(const Var& x);

inline Complex operator+(const Complex& a, const Complex& b) { return {add(a.re, b.re), add(a.im, b.im)}; }
inline Complex operator-(const Complex& a, const Complex& b) { return {sub(a.re, b.re), sub(a.im, b.im)}; }
/// a b, with broadcasting.
inline Complex operator*(const Complex& a, const Complex& b) {
  return {sub(mul(a.re, b.re), mul(a.im, b.im)), add(mul(a.re, b.im), mul(a.im, b.re))};
}
inline Complex conj(const Complex& a) { return {a.re, unary(Unary::neg, a.im)}; }
/// [..., N] and [..., N] → [..., 2N], re then im.
inline Var packed(const Complex& a) { return concat({a.re, a.im}); }

}  // namespace eigentrace
