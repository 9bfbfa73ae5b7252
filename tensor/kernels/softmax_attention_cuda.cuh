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

/// Tensor-core bodies: queries or keys a block.
constexpr int attention_rows = 128;
/// Head sizes padded to those of a tensor-core instance, and the blocks of keys whose parts of dq exist at a
/// time.
struct AttentionPlan {
  Precision precision = Precision::fp32;
  int N = 0, P = 0;
  int64_t key_blocks = 0;
  bool exists() const { return N > 0; }
};
/// None exists for fp32, f64, heads wider than 128, scale ≤ 0, and where shared memory is too small.
AttentionPlan attention_plan(const Context& ctx, const Tensor& q, const Tensor& v, double scale);
/// Elements of step memory for the parts of dq.
int64_t attention_part_elements(const AttentionPlan& plan, const Tensor& q);
/// Blocks of keys first_block + 0 … of one launch write dq's parts [block][B·H][T][N], rows from their own
/// on.
struct AttentionParts {
  float* data;
  int first_block, blocks;
};
void attention_tensor_cores(const Context& ctx, const AttentionPlan& plan, const AttentionOperands<float>& a);
/// parts: attention_part_elements, or null if dq is not wanted.
void attention_tensor_cores_backward(const Context& ctx, const AttentionPlan& plan,
                                     const AttentionOperands<float>& a, const AttentionGradients<float>& g,
                                     float* parts);
/// One launch each, M: AttentionBf16, AttentionTf32 or AttentionTf32x3 (softmax_attention_<precision>.cu).
template <class M>
void attention_mma(const Context& ctx, const AttentionPlan& plan, const AttentionOperands<float>& a);
template <class M>
void attention_mma_backward(const Context& ctx, const AttentionPlan& plan, const AttentionOperands<float>& a,
                            const AttentionGradients<float>& g, const AttentionParts& parts);

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
