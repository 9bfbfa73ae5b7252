#pragma once
// The recurrence of ssd.cu in float32 with N, P ≤ 128, in chunks of 64 steps, everything parallel over
// sequences and chunks. Per sequence and head, chunk c, S before it and R the gradient of the state after it:
//   ssd_states_kernel     S_{c+1} = exp(A_end) S_c + Σ_j carry_j k_j v_jᵀ,   carry_j = exp(A_end − A_j) w_j
//                    and  R_{c−1} = exp(A_end) R_c + Σ_i fade_i r_i q_i dy_iᵀ,   fade_i = exp(A_i)
//   ssd_outputs_kernel    y_i = r_i (Σ_{j≤i} D_ij w_j (q_i·k_j) v_j + fade_i q_i S_c) + skip v_i
//   ssd_gradients_kernel  every gradient from one reading of q, k, v, dy, S_c and R_c:
//     A = q kᵀ, G = dy vᵀ, W = D w ∘ G, E = W ∘ A
//     dq_i = r_i (Σ_j W_ij k_j + fade_i S dy_i)        dk_j = Σ_i W_ij r_i q_i + carry_j R v_j
//     dv_j = w_j (Σ_i D_ij A_ij r_i dy_i + exp(A_end − A_j) k_j R) + skip dy_j
//     dw_j = Σ_i D_ij A_ij G_ij + exp(A_end − A_j) k_j·(R v_j),   dskip = Σ_i G_ii
//     dlog_a from E without its diagonal, q_i·(S's part of dq_i), k_j·(R's part of dk_j), exp(A_end) ⟨S, R⟩
// r_i is a normaliser: scale · exp(−log η_i), or, for linear attention, 1/η_i with
//   η_i = Σ_{j≤i} A_ij + q_i·z_c,  z the sum of the keys before the chunk: one more column of the state.
//   Its gradient, dη_i = −r_i² δ_i with δ_i = Σ_j W_ij A_ij + fade_i q_i·(S dy_i), adds dη_i Σ_{j≤i} k_j to
//   dq_i and Σ_{i≥j} dη_i q_i to dk_j (r_i W_ij becomes r_i W_ij + dη_i); what later chunks add there is
//   their sum's, in ssd_tails_kernel.
// Heads that share q and k share a block of the last kernel: A is made once, dq and dk add up in registers.
//
// Bytes (float32) and products a layer, forward + backward, at 4.2 TB/s and tensor cores at 120 TFMA/s:
//   MQAR   64 sequences, N = P = 128:         67 + 67 + 84, 67 + 184 MB = 112 µs;  1.6 + 3.4 GFMA = 42 µs
//   CIFAR  200 sequences, N 16, P 128:        144 + 262, 144 + 420 MB = 231 µs;  1.2 + 2.9 GFMA = 34 µs
//   CIFAR  mamba2, N = 64 shared by 4 heads:  223 + 341, 223 + 577 MB = 325 µs;  4.6 + 9.3 GFMA = 116 µs
//   IMDB   24 sequences, T 4096, N 16, P 32:  22 + 41, 22 + 69 MB, in the L2 cache
// Measured on an H200 in TF32, µs (states, outputs, states of the gradient, gradients):
//   MQAR   24 + 52 + 24 + 103, linear 21 + 58 + 24 + 112;
//          by wgmma 22 + 39 + 24 + 85, linear 21 + 44 + 24 + 71
//   CIFAR  42 + 71 + 42 + 144, linear 35 + 75 + 40 + 163, mamba2 70 + 128 + 69 + 357
//   IMDB   17 + 18 + 17 + 39, mamba2 31 + 37 + 30 + 91
// What is left above the bytes is instructions: in the gradients of CIFAR's mamba2 30,000 a head and chunk,
// for 2,200 products of 16×8×8, issued by two warps a scheduler at a third of the rate (fixed latencies and
// loads from shared memory), and waits at barriers for the six warps that hold pairs.
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/dropout_stream.h"
#include "tensor/kernels/ssd_cuda.cuh"

namespace eigentrace::kernels {

constexpr int ssd_most_width = 128, ssd_threads = 256;
/// Bytes of shared memory that a block must be allowed: the smallest forms of the gradients' take it.
constexpr size_t ssd_least_shared(int64_t N) { return N <= 64 ? 152 << 10 : 163 << 10; }

/// A number a step: absent (1), what is stored, or scale · exp(−what is stored).
struct StepFactor {
  PerStep<const float> from;
  float scale = 1;
  bool negated_log = false;

  __device__ __forceinline__ float at(int64_t b, int64_t t, int64_t h) const {
    if (!from.data) return 1;
    const float x = from.at(b, t, h);
    return negated_log ? scale * expf(-x) : x;
  }
};

/// Dropout of y, [B, T, H, P] dense, a draw an element; what dy is multiplied by as it is read. N ≤ 16 alone.
struct SsdMask {
  DropoutStream stream;
  bool drops = false;
  int64_t heads, width;  // H, P
  __device__ __forceinline__ int64_t element(int64_t row, int h) const { return (row * heads + h) * width; }
};

/// What decays and weights are to the steps of each chunk, [B H, chunks, 64]; past the end weight 0 and no
/// decay. Absent: all of it 1. A_i / log 2 is held in two floats: a difference of two sums is exact to 2⁻²³
/// of itself, whatever their size.
struct SsdFactors {
  float2* sum;                    // A_i / log 2
  float *weight, *fade, *to_end;  // w_i, exp(A_i), exp(A_end − A_i)
  float* decay;                   // [B H, chunks], exp(A_end)
};

/// One pass of ssd_states_kernel: forward x, y = k, v; in reverse q, dy.
struct SsdStates {
  Heads<float> x, y;
  int x_heads, B, steps, H, N, P, Np, Pp, chunks, slice, stages;
  int64_t elements;                      // Np Pp, and Np more for z
  const float *scale, *scale_2, *decay;  // products of steps' factors, or null
  StepFactor row;                        // used where a scale is absent
  float* states;                         // [B H, chunks, elements]
  bool reverse, whole, sums, aligned;    // whole: a block walks all chunks; else one, and sums are to follow
  SsdMask mask;                          // of y
};

/// One pass of the other kernels. What has no data is absent or not wanted.
struct SsdPass {
  Heads<float> q, k, v, y, dy, dq, dk, dv;
  int B, steps, G, H, N, P, Np, Pp, chunks, slice;
  int64_t elements;
  size_t shared;        // bytes a block may have
  bool decays, weighs;  // factors are there because of log a, of w
  bool linear;          // r_i = 1/η_i
  bool of_elu;          // q and k are elu + 1 of what dq and dk are the gradients of
  bool aligned, even;   // rows of q, k, v, dy at multiples of 16 bytes; results' rows at multiples of 8
  SsdFactors f;
  StepFactor row;  // r_i, in the forward pass of linear attention unused
  SsdMask mask;
  PerStep<const float> skip;
  PerStep<float> dw, dlog_a, log_eta;
  const float *states, *later;  // S_c, z_c, and R_c
  double *flow, *dskip;         // [B H, chunks]: their sums over a chunk
  float *delta, *tails;         // δ [B, T, H]; Σ_i dη_i q_i of each chunk, [B H, chunks, N]
};

/// Defined in ssd_<precision>.cu, so that they compile side by side.
template <Precision precision>
void launch_states(const Context& ctx, const SsdStates& s);
template <Precision precision>
void launch_outputs(const Context& ctx, const SsdPass& s);
template <Precision precision>
void launch_gradients(const Context& ctx, const SsdPass& s);
/// The last two in TF32 by ssd_outputs_wgmma.cu and ssd_gradients_wgmma.cu, where that is possible; else
/// false.
bool launch_outputs_wgmma(const Context& ctx, const SsdPass& s);
bool launch_gradients_wgmma(const Context& ctx, const SsdPass& s);

}  // namespace eigentrace::kernels
#endif
