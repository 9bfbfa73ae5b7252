#pragma once
// The recurrence of ssd.cu on CUDA, what all its kernels share: operands, and the factors of a chunk.
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/dispatch.h"
#include "tensor/heads.h"
#include "tensor/math.h"

namespace eigentrace::kernels {
namespace {

constexpr int ssd_chunk = 64;

/// Operands of the forward and the backward pass; gradients that are not wanted have no data.
template <class T>
struct SsdOperands {
  int B, T_, G, H, N, P, chunks;
  Heads<T> q, k, v, y, dy, dq, dk, dv;
  PerStep<const T> log_a, w;
  PerStep<T> dw, dlog_a;
  T *states, *later, *decays;  // [B, H, chunks, N, P] twice, [B, H, chunks]
  double* flow;                // [B, T, H]: dlog_a of each step, where dlog_a is a sum over steps

  __device__ __forceinline__ int group(int h) const { return h * G / H; }
  __device__ __forceinline__ int steps(int c) const {
    const int left = T_ - c * ssd_chunk;
    return left < ssd_chunk ? left : ssd_chunk;
  }
  __device__ __forceinline__ int64_t state_size() const { return int64_t{N} * P; }
};

/// Decays and weights of the steps of one chunk and head, in shared memory; past the end: no decay, weight 0.
template <class T>
struct SharedFactors {
  double sum[ssd_chunk];                                          // A_i
  T from_start[ssd_chunk], to_end[ssd_chunk], weight[ssd_chunk];  // exp(A_i), exp(A_end − A_i), w_i
  T decay;                                                        // exp(A_end)

  /// exp(A_i − A_j)
  __device__ __forceinline__ T pair(int i, int j) const { return fast_exp(static_cast<T>(sum[i] - sum[j])); }
};

/// By all threads of the block (at least 64); begins and ends with a barrier.
template <class T>
__device__ __forceinline__ void load_factors(SharedFactors<T>& f, const PerStep<const T>& log_a,
                                             const PerStep<const T>& w, int64_t b, int64_t h, int64_t t0,
                                             int n) {
  const int i = static_cast<int>(threadIdx.x);
  __syncthreads();
  double x = 0, total = 0;
  if (i < ssd_chunk) {
    if (log_a.data && i < n) {
      const double given = static_cast<double>(log_a.at(b, t0 + i, h));
      x = given > -800 || given != given ? given : -800;
    }
    for (int d = 1; d < 32; d *= 2) {
      const double before = __shfl_up_sync(0xFFFFFFFFu, x, static_cast<unsigned>(d));
      if (i % 32 >= d) x += before;
    }
    f.sum[i] = x;
  }
  __syncthreads();
  if (i < ssd_chunk) {
    if (i >= 32) x += f.sum[31];
    total = f.sum[63] + f.sum[31];
  }
  __syncthreads();
  if (i < ssd_chunk) {
    f.sum[i] = x;
    f.weight[i] = i >= n ? T(0) : w.data ? w.at(b, t0 + i, h) : T(1);
    f.from_start[i] = log_a.data ? fast_exp(static_cast<T>(x)) : T(1);
    f.to_end[i] = log_a.data ? fast_exp(static_cast<T>(total - x)) : T(1);
    if (i == 0) f.decay = log_a.data ? fast_exp(static_cast<T>(total)) : T(1);
  }
  __syncthreads();
}

/// Where block `item` of [B, H or G, chunks] stands.
struct ChunkPlace {
  int b, h, c;
  __device__ __forceinline__ ChunkPlace(unsigned item, int heads, int chunks)
      : b(static_cast<int>(item) / chunks / heads),
        h(static_cast<int>(item) / chunks % heads),
        c(static_cast<int>(item) % chunks) {}
};

/// In place, for each element of the states: what `own` holds becomes the sum of what came before it,
/// decayed; in reverse, of what comes after.
template <class T>
__global__ void ssd_prefix_kernel(T* own, const T* decays, int64_t sequences, int chunks, int64_t elements,
                                  bool reverse) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= sequences * elements) return;
  const int64_t sequence = at / elements, e = at % elements;
  T run = 0;
  for (int step = 0; step < chunks; ++step) {
    const int64_t c = sequence * chunks + (reverse ? chunks - 1 - step : step);
    T* x = own + c * elements + e;
    const T u = *x;
    *x = run;
    run = decays[c] * run + u;
  }
}

/// to[h] = Σ_{b,t} flow[b, t, h]; a block a head.
template <class T>
__global__ void ssd_flow_per_head_kernel(const double* flow, int64_t rows, int heads, PerStep<T> to) {
  double* sums = dynamic_shared<double>();
  const int h = static_cast<int>(blockIdx.x), i = static_cast<int>(threadIdx.x);
  double sum = 0;
  for (int64_t r = i; r < rows; r += blockDim.x) sum += flow[r * heads + h];
  sums[i] = sum;
  for (int d = static_cast<int>(blockDim.x) / 2; d > 0; d /= 2) {
    __syncthreads();
    if (i < d) sums[i] += sums[i + d];
  }
  if (i == 0) to.at(0, 0, h) = static_cast<T>(sums[0]);
}

}  // namespace
}  // namespace eigentrace::kernels
#endif
