#pragma once
// The recurrence of ssd.cu in float32 with N, P ≤ 128: one kernel for the outputs and for every gradient.
//
// Forward in time (j ≤ i) or in reverse (j ≥ i), with x, y of `inner` columns and z of `outer`:
//   out_i = c_i Σ_j D_ij b_j (x_i·y_j) z_j
// gives   y: x = q, y = k, z = v, b = w;                 dq: x = dy, y = v, z = k, b = w;
//        dk: x = v, y = dy, z = q, c = w, in reverse;    dv: x = k, y = q, z = dy, c = w, in reverse
// (attention's normalisers add a factor of their own to steps of y or dy). A block walks the chunks of 64
// steps of one sequence and head, for a slice of z's columns, with the state [inner, slice] in shared memory:
//   M = D b ∘ (X Yᵀ),  out = c (M Z + d X S),  S ← exp(A_end) S + Yᵀ (e Z)
// so that every operand is read once a slice and no state goes to memory. Where sequences are too few to fill
// the GPU, time is cut into segments whose own states come first, from the same kernel, and are summed up by
// ssd_prefix_kernel.
//
// Bytes (float32, each operand once) and products a layer, forward + backward, at 4.2 TB/s and 4.3 KFMA/ns:
//   MQAR   64 sequences, N = P = 128:    67 + 201 MB = 64 µs;  2.0 + 6.0 GFMA in 2 slices of 64
//   CIFAR  200 sequences, N 16, P 128:   236 + 708 MB = 225 µs;  2.2 + 6.6 GFMA
//   CIFAR  mamba2, N = 64 shared by 4:   236 + 900 MB = 270 µs;  4.6 + 15 GFMA
//   IMDB   24 sequences, T 4096, N 16, P 32:  38 + 113 MB = 36 µs, segments of 4 chunks
// Shared memory is what products wait for: 2.3 to 3 loads of 128 bytes a product of 16×8×8. Two blocks an SM
// hide each other's loads.
//
// The gradient of log a. E_ij = D_ij w_j (q_i·k_j) (dy_i·v_j) is made once, in dq's walk, and its sums over
// rows and over columns leave out i = j and agree to the last digit of a double. What passes between chunks
// is q_i·(dq_i's part from the state) and k_j·(dk_j's); ssd_flow_assembly_kernel puts them together.
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/kernels/ssd_cuda.cuh"

namespace eigentrace::kernels {

constexpr int walk_threads = 256, walk_most_width = 128;

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

/// What a walk sums besides its outputs: products of rows with `dotted`, in double, a partial sum a slice and
/// half of its columns.
enum class WalkDots : unsigned char { none, state_part, all };

struct WalkRole {
  Heads<float> x, y, z, dotted;
  Heads<float> out;  // no data: not wanted
  int x_heads, y_heads, z_heads, dotted_heads, out_heads;
  StepFactor target, source;  // c, b
  PerStep<const float> skip;  // [H] or none: out_i += skip z_i
  double* skip_sums;          // or null: Σ z_i·dotted_i, [blocks, slices, warps]
  bool reverse;
  WalkDots dots;
  bool flow;       // also E's sums: rows are added to `sums`, columns go to `starts`; dotted: q, z: k
  double* sums;    // [2 slices, B, T, H]
  double* starts;  // [4 slices, B, T, H], row tile r holds columns before 16 (r + 1) of each chunk
  float* states;   // [B H, segments, inner, outer]
};

struct Walk {
  WalkRole roles[2];
  PerStep<const float> log_a;
  float* decays;  // [B H, segments]
  int B, steps, H, inner, outer, inner_room, chunks, segment, segments, stages;
  bool states_only, aligned;
};

/// What a block keeps of a chunk's steps; the state and the operands follow.
struct WalkShared {
  double sum[ssd_chunk];                      // A_i
  float source[ssd_chunk], carry[ssd_chunk];  // b_j, b_j times the decay from step j to the state
};

/// Starts ssd_walk_kernel for slices of 16, 32, 64 or 128 columns; defined in ssd_walk_<precision>.cu, so
/// that they compile side by side.
template <Precision precision>
void launch_walk(const Context& ctx, const Walk& s, int slice, size_t shared, dim3 grid);

}  // namespace eigentrace::kernels
#endif
