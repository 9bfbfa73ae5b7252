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

/// How a tensor-core block works: each of `warps` owns 16 · groups queries (forward) or keys (backward), and
/// together they walk over tiles of `tile` of the other ones, of which the forward pass takes 32 at a time.
/// dq: `span` tiles a product, `slots` of these in shared memory (2: one barrier less). `resident`: blocks an
/// SM, which bounds registers. `ahead`: tiles under way in the forward pass.
struct AttentionShape {
  int warps, groups, tile, resident, span = 1, slots = 1, ahead = 1;
  constexpr int threads() const { return 32 * warps; }
  constexpr int rows() const { return 16 * groups * warps; }
};
constexpr AttentionShape attention_forward_shape(Precision precision, int N, int P) {
  const bool half = precision == Precision::bf16;
  const int two = precision == Precision::tf32x3 ? 1 : 2;  // its fragments take twice the registers
  if (N <= 32 && P <= 32) return half ? AttentionShape{4, 2, 64, 3} : AttentionShape{8, 1, 64, two};
  if (N <= 32) return half ? AttentionShape{4, 2, 64, 2} : AttentionShape{8, 1, 32, two};
  if (P <= 64) return half ? AttentionShape{4, 2, 64, 2} : AttentionShape{8, 1, 32, 1};
  return half ? AttentionShape{4, 2, 32, 2} : AttentionShape{8, 1, 32, 1};
}
/// Of picked queries, heads 128 × 128 in bf16: a block an SM at most, which waits for memory alone.
constexpr AttentionShape attention_picks_shape{4, 1, 32, 1, 1, 1, 4};
constexpr AttentionShape attention_backward_shape(Precision precision, int N, int P) {
  const bool half = precision == Precision::bf16;
  const int two = precision == Precision::tf32x3 ? 1 : 2;
  if (N <= 32 && P <= 32)
    return half ? AttentionShape{4, 2, 32, 3, 2, 2} : AttentionShape{8, 1, 32, two, 2, 1};
  if (N <= 32 && precision == Precision::tf32) return {8, 1, 64, 1, 1, 1};
  if (N <= 32) return half ? AttentionShape{4, 2, 32, 2, 2, 1} : AttentionShape{8, 1, 32, 1, 2, 1};
  if (P <= 64) return half ? AttentionShape{4, 2, 32, 2, 1, 2} : AttentionShape{8, 1, 32, 1, 1, 1};
  return half ? AttentionShape{8, 1, 32, 1, 1, 2} : AttentionShape{8, 1, 32, 1, 1, 1};
}
/// Elements between the rows of shared memory beyond their content: 4 banks.
constexpr int attention_pad(Precision precision) { return precision == Precision::bf16 ? 8 : 4; }
constexpr size_t attention_forward_bytes(const AttentionShape& s, Precision precision, int N, int P) {
  const int pad = attention_pad(precision);
  return static_cast<size_t>(precision == Precision::bf16 ? 2 : 4) *
             static_cast<size_t>(s.rows() * (N + pad) + s.tile * (2 * (N + pad) + 3 * (P + pad))) +
         static_cast<size_t>(precision == Precision::bf16 ? 4 * s.ahead * s.tile * (N + P) : 0);
}
constexpr size_t attention_backward_bytes(const AttentionShape& s, Precision precision, int N, int P) {
  const int pad = attention_pad(precision);
  return static_cast<size_t>(4 * s.tile * ((precision == Precision::bf16 ? N + P : 0) + 10)) +
         static_cast<size_t>(precision == Precision::bf16 ? 2 : 4) *
             static_cast<size_t>((s.rows() + 2 * s.tile) * (N + P + 2 * pad) +
                                 s.slots * s.rows() * (s.span * s.tile + pad));
}

/// Head sizes padded to those of a tensor-core instance, keys a block of the backward pass, and the blocks of
/// keys whose parts of dq exist at a time.
struct AttentionPlan {
  Precision precision = Precision::fp32;
  int N = 0, P = 0, rows = 0;
  int64_t key_blocks = 0;
  bool wgmma = false;  ///< the backward pass
  bool exists() const { return N > 0; }
};
/// Of softmax_attention_wgmma.cuh: whether an instance exists, its warpgroups of 64 keys, and queries a tile.
constexpr bool attention_wgmma_has(int N, int P) { return (N == 16 && P <= 128) || (N == 128 && P == 128); }
constexpr int attention_wgmma_groups(int, int) { return 2; }
constexpr int attention_wgmma_queries = 64;
constexpr int attention_pack_bytes(int N, int P, bool picked = false) {
  return attention_wgmma_queries * (2 * (N + P) + (picked ? 12 : 8));
}
/// None exists for fp32, f64, heads wider than 128, scale ≤ 0, and where shared memory is too small.
AttentionPlan attention_plan(const Context& ctx, const Tensor& q, const Tensor& v, double scale);
/// Elements of step memory of the backward pass: what is packed, and the parts of dq if that is wanted.
int64_t attention_backward_elements(const AttentionPlan& plan, const Tensor& q, bool wants_q);
/// Blocks of keys first_block + 0 … of one launch write dq's parts [block][B·H][T][N], rows from their own
/// on; of picked queries [block][H][capacity][64][N].
struct AttentionParts {
  float* data;
  int first_block, blocks;
};
/// Queries that alone are read, at ascending rows b T + t; y and dy [1, M, H, P] and lse [M, H] are theirs.
/// Of each sequence they fill tiles of their own: its first one is ⌊begin / 64⌋ + b of a head's `capacity`,
/// so that no sum over the sequences before it is wanted.
struct AttentionPicks {
  const int32_t* rows = nullptr;           ///< [M]; null: row m
  const int32_t* spans = nullptr;          ///< [B · pieces + 1]: how many rows lie before b T + 64 c; in all
  int size = 0, pieces = 0, capacity = 0;  ///< M, ⌈T / 64⌉, ⌊M / 64⌋ + B

  /// c = pieces: before the next sequence.
  __device__ int before(int b, int c) const { return spans[b * pieces + c]; }
  /// Of row m in sequence b, `length` if it is not one of it.
  __device__ int position(int m, int b, int length) const {
    const int64_t t = (rows ? rows[m] : m) - int64_t{b} * length;
    return t >= 0 && t < length ? static_cast<int>(t) : length;
  }
  /// Rows first … of those before `end`, which are of `sequence`; none if first ≥ end.
  struct Tile {
    int sequence, first, end;
  };
  /// Tile `index` of a head, of the last sequence whose first tile is no later; whole blocks ask.
  __device__ Tile tile(int index, int sequences) const {
    int last = -1;
    for (int s = 0; s < sequences; s += static_cast<int>(blockDim.x)) {
      const int own = s + static_cast<int>(threadIdx.x);
      last += __syncthreads_count(own < sequences && before(own, 0) / attention_wgmma_queries + own <= index);
    }
    const int begin = before(last, 0), own = index - begin / attention_wgmma_queries - last;
    return {last, begin + own * attention_wgmma_queries, before(last, pieces)};
  }
};
void attention_tensor_cores(const Context& ctx, const AttentionPlan& plan, const AttentionOperands<float>& a);
/// y and lse of picked queries, where attention_picks_exist. Those that are in no sequence stay as they are.
void attention_tensor_cores_picks(const Context& ctx, const AttentionOperands<float>& a,
                                  const AttentionPicks& picks);
/// memory: attention_backward_elements, or null if there are none.
void attention_tensor_cores_backward(const Context& ctx, const AttentionPlan& plan,
                                     const AttentionOperands<float>& a, const AttentionGradients<float>& g,
                                     float* memory);
/// plan.wgmma: q, dy, lse and delta as the second one reads them, once; the parts' blocks of keys.
void attention_pack(const Context& ctx, const AttentionPlan& plan, const AttentionOperands<float>& a,
                    const AttentionGradients<float>& g, void* packs);
void attention_wgmma_backward(const Context& ctx, const AttentionPlan& plan,
                              const AttentionOperands<float>& a, const AttentionGradients<float>& g,
                              const AttentionParts& parts, const void* packs);
/// Both of picked queries, for heads 128 × 128 without dropout.
constexpr bool attention_picks_exist(const AttentionPlan& plan) {
  return plan.wgmma && plan.N == 128 && plan.P == 128;
}
void attention_pack_picks(const Context& ctx, const AttentionOperands<float>& a,
                          const AttentionGradients<float>& g, const AttentionPicks& picks, void* packs);
void attention_wgmma_backward_picks(const Context& ctx, const AttentionOperands<float>& a,
                                    const AttentionGradients<float>& g, const AttentionParts& parts,
                                    const AttentionPicks& picks, const void* packs);
/// One launch each, M: AttentionBf16, AttentionTf32 or AttentionTf32x3 (softmax_attention_<precision>.cu).
template <class M>
void attention_mma(const Context& ctx, const AttentionPlan& plan, const AttentionOperands<float>& a);
template <class M>
void attention_mma_backward(const Context& ctx, const AttentionPlan& plan, const AttentionOperands<float>& a,
                            const AttentionGradients<float>& g, const AttentionParts& parts);

/// The mask of one matrix of weights, with the step's state in registers; whole warps.
struct AttentionMask {
  uint64_t seed, counter;
  uint32_t threshold;
  int64_t item, blocks;

  AttentionMask() = default;
  __device__ AttentionMask(const DropoutStream& stream, int64_t matrix, int64_t length)
      : seed(__shfl_sync(0xFFFFFFFFu, static_cast<uint64_t>(stream.state[0]), 0)),  // the compiler sees that
        counter(__shfl_sync(0xFFFFFFFFu, static_cast<uint64_t>(stream.state[1]), 0)
                    << 32 |  // it is one for all
                stream.op),
        threshold(stream.threshold << 16),
        item(matrix),
        blocks(DropoutStream::weight_blocks(length)) {}
  /// The call that decides on rows i, i + 8 and columns j, j + 1, j + 8, j + 9 of a block of 16 × 16.
  __device__ int64_t block(int64_t i, int64_t j) const {
    return DropoutStream::weight_block(item, i, j, blocks);
  }
  __device__ Philox4 words(int64_t b) const { return DropoutStream::words(seed, counter, b); }
  /// Several calls at a time, round by round: their keys are made once.
  template <int n>
  __device__ void words(Philox4 (&w)[n], const int64_t (&b)[n]) const {
    DropoutStream::words(seed, counter, b, w);
  }
  __device__ bool keeps(uint32_t word, int half) const { return (half ? word : word << 16) >= threshold; }
  /// All ones in each half of a word that keeps, zeros in the others; the low half decides on the earlier
  /// element. Positive float16 numbers are ordered as their bits, and what compares as not a number lies
  /// above all of them; halves with the top bit set are above the threshold.
  template <int n>
  __device__ __forceinline__ void halves(uint32_t (&kept)[n][4], const Philox4 (&w)[n]) const {
#ifndef EIGENTRACE_EMULATE
    if (threshold <= 0x7C000000u) {
      const uint32_t least = threshold | threshold >> 16;
#pragma unroll
      for (int u = 0; u < n; ++u)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          uint32_t above, top;
          asm("{.reg .b32 t; abs.f16x2 t, %1; set.geu.u32.f16x2 %0, t, %2;}"
              : "=r"(above)
              : "r"(w[u].x[i]), "r"(least));
          asm("prmt.b32 %0, %1, 0, 0xBB99;" : "=r"(top) : "r"(w[u].x[i]));  // sign bits, spread
          kept[u][i] = above | top;
        }
      return;
    }
#endif
#pragma unroll
    for (int u = 0; u < n; ++u)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        kept[u][i] = (keeps(w[u].x[i], 0) ? 0xFFFFu : 0u) | (keeps(w[u].x[i], 1) ? 0xFFFF0000u : 0u);
  }
  /// Bit u: (i, j + u) is kept, u = 0…3; j a multiple of 4.
  __device__ uint32_t kept4(int64_t i, int64_t j) const {
    uint32_t bits = 0;
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      const Philox4 w = words(block(i, j + 2 * u));
      const uint32_t near = i & 8 ? w.x[1] : w.x[0], far = i & 8 ? w.x[3] : w.x[2];
      const uint32_t word = j & 8 ? far : near;
      bits |= (uint32_t{keeps(word, 0)} | uint32_t{keeps(word, 1)} << 1) << 2 * u;
    }
    return bits;
  }
};
#endif

}  // namespace eigentrace::kernels
