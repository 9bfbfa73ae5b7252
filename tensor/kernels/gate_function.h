#pragma once
// What kernels of a gate y = residual + m a f(z) share. For kernels/*.cu only.
#include <type_traits>

#include "tensor/dropout_stream.h"
#include "tensor/functions.h"

namespace eigentrace::kernels {

/// body.operator()<functions::Sigmoid or Silu>().
template <class Body>
void with_gate(Unary f, Body&& body) {
  if (f == Unary::sigmoid)
    body.template operator()<functions::Sigmoid>();
  else if (f == Unary::silu)
    body.template operator()<functions::Silu>();
  else
    fail(std::string("gate: f: sigmoid or silu expected, found ") + name_of(f));
}

/// f, chosen at run time: CUDA's gates are bound by memory, and a kernel for each f would be twice as much to
/// compile. Error: neither sigmoid nor SiLU.
struct GateFunction {
  bool silu;
  explicit GateFunction(Unary f) {
    with_gate(f, [&]<class F>() { silu = std::is_same_v<F, functions::Silu>; });
  }
  template <class T>
  ET_HD T value(T z) const {
    return silu ? functions::Silu::value(z) : functions::Sigmoid::value(z);
  }
  template <class T>
  ET_HD T derivative(T z) const {
    return silu ? functions::Silu::derivative(z) : functions::Sigmoid::derivative(z);
  }
};

/// time −1: no dropout.
inline MaskedElements gate_mask(const Context& ctx, const Gate& g) {
  if (g.drop.p > 0) return masked_elements(ctx, g.drop, g.a);
  return {dropout_stream(ctx, 0, 0), -1, 1};
}

}  // namespace eigentrace::kernels
