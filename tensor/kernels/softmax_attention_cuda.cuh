#pragma once
// Operands of softmax_attention, and what its CUDA files share. Equations: softmax_attention.cu.
#include "tensor/dispatch.h"
#include "tensor/dropout_stream.h"
#include "tensor/heads.h"

namespace eigentrace::kernels {

struct AttentionSizes {
  int64_t B, T, H, N, P;
};

template <class T>
struct AttentionOperands {
  AttentionSizes size;
  Heads<T> q, k, v, y;
  T* lse;  // [B, T, H]
  T scale;
  DropoutStream mask;
  bool drops;
};

template <class T>
struct AttentionGradients {
  Heads<T> dy, dq, dk, dv;
  bool wants_q, wants_k, wants_v;
  T* delta;  // [B, H, T]
};

#ifdef EIGENTRACE_WITH_CUDA
/// Bodies without tensor cores: any sizes, float and double. `delta` is filled by attention_delta first.
template <class T>
void attention_scalar(const Context& ctx, const AttentionOperands<T>& a);
template <class T>
void attention_scalar_backward(const Context& ctx, const AttentionOperands<T>& a,
                               const AttentionGradients<T>& g);
/// delta = Σ_p dy y
template <class T>
void attention_delta(const Context& ctx, const AttentionOperands<T>& a, const AttentionGradients<T>& g);

/// Dropout's mask with the step's state in registers.
struct AttentionMask {
  uint64_t seed, counter;
  uint32_t threshold;

  __device__ explicit AttentionMask(const DropoutStream& stream)
      : seed(static_cast<uint64_t>(stream.state[0])),
        counter(static_cast<uint64_t>(stream.state[1]) << 32 | stream.op),
        threshold(stream.threshold) {}
  /// Bit u: element 4 block + u is kept.
  __device__ uint32_t kept4(int64_t block) const {
    const Philox4 w = philox(seed, counter, static_cast<uint64_t>(block) | uint64_t{1} << 63);
    return uint32_t{w.x[0] >= threshold} | uint32_t{w.x[1] >= threshold} << 1 |
           uint32_t{w.x[2] >= threshold} << 2 | uint32_t{w.x[3] >= threshold} << 3;
  }
  /// Bit u: element first + u is kept, u = 0…3.
  __device__ uint32_t kept_from(int64_t first) const {
    const uint32_t offset = static_cast<uint32_t>(first & 3);
    uint32_t bits = kept4(first >> 2);
    if (offset != 0) bits |= kept4((first >> 2) + 1) << 4;
    return bits >> offset & 15u;
  }
};
#endif

}  // namespace eigentrace::kernels
