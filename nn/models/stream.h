#pragma once
// The residual stream of the transformer and mamba families: x + dropout(branch, rate). The branch stays
// apart until a LayerNorm adds it in the same pass over memory.
#include "autograd/ops_norm.h"
#include "autograd/ops_pointwise.h"
#include "nn/module.h"

namespace eigentrace {

struct Stream {
  Var x, branch;  ///< branch undefined: x alone; x undefined: dropout(branch), rate > 0
  double rate = 0;
};

inline Var sum_of(const Stream& s) {
  if (!s.branch.defined()) return s.x;
  const Var branch = dropout(s.branch, s.rate);
  return s.x.defined() ? add(s.x, branch) : branch;
}

/// (stream summed, normed).
inline ResidualNorm norm_of(const Forward& forward, const LayerNorm& norm, const Stream& s) {
  if (!s.branch.defined()) return {s.x, norm(forward, s.x)};
  return residual_layer_norm(s.x, s.branch, s.rate, forward(norm.weight), forward(norm.bias), norm.epsilon);
}

}  // namespace eigentrace
