#pragma once
// Losses over a list of labelled rows.
#include "autograd/tape.h"
#include "tensor/kernels.h"

namespace eigentrace {

/// Labelled rows on the device, padded at the end to a fixed capacity M with weight 0.
struct Labels {
  Tensor rows;     ///< i32 [M], row of the logits or features, ascending; undefined: label m's row is m
  Tensor labels;   ///< i32 [M]
  Tensor weights;  ///< f32 [M], 1 or 0
  Tensor count;    ///< f64 [1], what the sum of losses is divided by
};

/// As kernels see them.
inline kernels::LabelledRows rows_of_labels(const Labels& l) {
  return {l.rows, l.labels, l.weights, l.count};
}

struct Loss {
  Var value;        ///< [] mean cross-entropy, in the element type of the logits
  Tensor correct;   ///< f64 [1], Σ weight · [argmax = label]; ties: the lowest class
  Tensor loss_sum;  ///< f64 [1], Σ weight · loss
  Tensor argmax;    ///< i32 [M], the predicted class of each labelled row (−1 where the weight is 0)
};

/// x [B,T,…] → [1,M,…], x at the labelled rows b T + t, zero where the weight is 0. For the first two axes'
/// rows.
Var labelled_rows(const Var& x, const Labels& labels);

/// logits [R,V] (or [B,T,V]); only labelled rows are read, the gradient of others is zero.
Loss cross_entropy(const Var& logits, const Labels& labels);

/// Loss of logits x Wᵀ + b at the labelled rows, in blocks of rows (≤ 16 MB of logits on the CPU): logits
/// never exist as a whole. x [..., D] rows, weight [V,D] (transposed views welcome), bias [V] or undefined.
/// Value, dx, dW and db come from one pass over the blocks (recorded), value alone when not recording.
Loss vocabulary_head(const Var& x, const Var& weight, const Var& bias, const Labels& labels);

/// y = x − log Σ exp(x) over the last axis.
Var log_softmax(const Var& x);

}  // namespace eigentrace
