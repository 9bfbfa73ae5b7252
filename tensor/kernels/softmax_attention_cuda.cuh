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

/// The mask of one matrix of weights, with the step's state in registers.
struct AttentionMask {
  uint64_t seed, counter;
  uint32_t threshold;
  int64_t item, blocks;

  __device__ AttentionMask(const DropoutStream& stream, int64_t matrix, int64_t length)
      : seed(static_cast<uint64_t>(stream.state[0])),
        counter(static_cast<uint64_t>(stream.state[1]) << 32 | stream.op),
        threshold(stream.threshold),
        item(matrix),
        blocks(DropoutStream::weight_blocks(length)) {}
  /// The call that decides on rows i, i + 8 and columns j, j + 1, j + 8, j + 9 of a block of 16 × 16.
  __device__ Philox4 words(int64_t i, int64_t j) const {
    return DropoutStream::words(seed, counter, DropoutStream::weight_block(item, i, j, blocks));
  }
  __device__ bool keeps_low(uint32_t word) const { return (word & 0xFFFFu) >= threshold; }
  __device__ bool keeps_high(uint32_t word) const { return word >> 16 >= threshold; }
  /// Bit u: (i, j + u) is kept, u = 0…3; j a multiple of 4.
  __device__ uint32_t kept4(int64_t i, int64_t j) const {
    uint32_t bits = 0;
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      const Philox4 w = words(i, j + 2 * u);
      const uint32_t near = i & 8 ? w.x[1] : w.x[0], far = i & 8 ? w.x[3] : w.x[2];
      const uint32_t word = j & 8 ? far : near;
      bits |= (uint32_t{keeps_low(word)} | uint32_t{keeps_high(word)} << 1) << 2 * u;
    }
    return bits;
  }
};
#endif

}  // namespace eigentrace::kernels
