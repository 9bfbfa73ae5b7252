#pragma once
// Ops along a sequence that are no recurrence: look-up, convolution, pooling.
#include "autograd/tape.h"
#include "tensor/kernels/causal_conv1d_elu.h"

namespace eigentrace {

/// Tokens on the device. `order`: the positions 0..B·T−1 sorted stably by token, so that the gradient of a
/// table sums each token's rows in one fixed order without atomics.
struct Tokens {
  Tensor ids;    ///< i32 [B,T]
  Tensor order;  ///< i32 [B·T]
};

/// y[b,t] = table[ids[b,t]] + positions[t] + bias. table [V,D]; positions [≥T, D] or undefined; bias [D] or
/// undefined.
Var embedding(const Var& table, const Tokens& tokens, const Var& positions, const Var& bias);

/// Causal depthwise convolution (cross-correlation; tap K−1 meets the current step), then SiLU if asked.
/// x [B,T,C] (rows), weight [C,1,K], bias [C] → [B,T,C] dense. Kept: x (the pre-activation is recomputed).
Var causal_conv1d(const Var& x, const Var& weight, const Var& bias, bool silu);

/// Parts of the convolved channels, one of them through elu + 1.
struct ConvolvedParts {
  std::vector<Var> parts;
  Var of;  ///< what the mapped part is elu + 1 of: takes gradients (EluOf), but has the mapped part's values
};
/// split(causal_conv1d(…), widths) with elu + 1 of part `mapped`, made as it is written: the features of
/// linear attention.
ConvolvedParts causal_conv1d_elu(const Var& x, const Var& weight, const Var& bias, bool silu,
                                 const std::vector<int64_t>& widths, size_t mapped);

using Pooling = kernels::Pool;
/// x [B,T,D] → [B,D]. valid_time (i32 [1]): steps ≥ it are beyond the batch's padded length and are ignored
/// (a bucket's rounding); lengths (i32 [B]): only the first lengths[b] steps count. Both may be undefined:
/// all T count. A sequence of no steps gives 0. max: the gradient goes to the first maximum.
Var pool(const Var& x, Pooling pooling, const Tensor& lengths, const Tensor& valid_time);

/// y[b,t] = x[b,T−1−t], x [B,T,D]. A copy.
Var reverse_time(const Var& x);

}  // namespace eigentrace
