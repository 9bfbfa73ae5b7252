#pragma once
// S4's kernel on CUDA, a block a channel, in double as on the CPU: an H200 makes half as many products in
// double as in float32, and the sums as many on tensor cores.
//
// With x = g − Im Λ, ρ = −Re Λ, σ = 1/(x² + ρ²), t = σx the resolvent is r = ρσ − i t, so that a node's seven
// sums over states are a product [nodes × 2 states] · [2 states × 8] of (σ, t) with a table of w and ρw.
// Backward, (σ, t, σ², σt) of a state are products [states × nodes] · [nodes × 8] with the gradients of the
// four sums: S = Σ σG, T = Σ tG, S₂ = Σ σ²G, U = Σ σtG, from which (t² = σ − ρ²σ²)
//
//   dW = Σ conj(r) G = ρS + iT,   Σ conj(r)² G = 2ρ²S₂ − S + 2iρU,   dΛ = Σ_vw conj(W) Σ conj(r)² G
//   dlog Δ = Re(conj(Λ) dΛ) + Re Σ_vw conj(W) dW    (g = Λ + 1/r: no sum over nodes of its own)
//
// A lane computes exactly what its places of the product's left operand want, so that a term costs no more
// than its reciprocal (5 operations forward, 7 backward for float32's results) and 16 or 32 multiply-adds of
// tensor cores. Terms: MQAR 128·128·512 = 8.4e6, CIFAR 512·64·1024 = 3.4e7, where one unit takes turns at
// both: 30 µs forward, 54 µs backward; measured with transforms 64 and 102 µs. The forward sums are kept for
// the backward pass, 64 bytes a node (MQAR 4 MB, CIFAR 34 MB); gradients of the sums stay in shared memory,
// 512 nodes at a time.
#include "tensor/cplx.h"
#include "tensor/kernels/block_fft.cuh"
#include "tensor/mma_f64.h"

namespace eigentrace::kernels {
namespace {

constexpr int s4_threads = 512, s4_warps = s4_threads / 32;
constexpr int round_nodes = s4_threads;  // nodes of a round: 32 a warp
constexpr int node_stride = 12;          // numbers a node takes of shared memory: 8, and no bank conflicts
constexpr int table_states = 64;         // of a walk through the states
constexpr int64_t roots_length = 1024;   // up to here a block makes its own roots
constexpr int64_t shared_length = 2048;  // and up to here its transform fits shared memory

template <class T>
struct S4Arguments {
  const T *lambda_re, *lambda_im, *p, *b, *c, *log_step;
  int64_t states, channels, length;
  const cplx<double>* roots;  // null: made in shared memory
  cplx<double>* scratch;      // [channels, 2, length], or null: shared memory
  double* kept;               // [channels, length, 8]: every node's four sums; null: not wanted
};

/// 1/a for 1e−30 < a < 1e30 without division's checks: to double's last bits, or (steps 1) to 2⁻⁴⁰.
template <int steps = 2>
__device__ __forceinline__ double quick_reciprocal(double a) {
#ifdef EIGENTRACE_EMULATE
  return 1.0 / a;
#else
  double y;
  asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(y) : "d"(a));
  double e = fma(-a, y, 1.0);
  if constexpr (steps == 2) e = fma(e, e, e);
  return fma(y, e, y);
#endif
}
/// σ of a term whose results are T.
template <class T>
__device__ __forceinline__ double term_sigma(double x, double rho_squared) {
  return quick_reciprocal < sizeof(T) == 4 ? 1 : 2 > (fma(x, x, rho_squared));
}

template <class T>
struct S4State {
  double rho, im;
  bool clipped;
  cplx<double> p, b, c;
  __device__ S4State(const S4Arguments<T>& a, int64_t n, int64_t d) {
    const int64_t at = n * a.channels + d;
    const double re = static_cast<double>(a.lambda_re[at]);
    clipped = re > largest_real_part;
    rho = clipped ? -largest_real_part : -re;
    im = static_cast<double>(a.lambda_im[at]);
    p = {static_cast<double>(a.p[2 * at]), static_cast<double>(a.p[2 * at + 1])};
    b = {static_cast<double>(a.b[2 * at]), static_cast<double>(a.b[2 * at + 1])};
    c = {static_cast<double>(a.c[2 * at]), static_cast<double>(a.c[2 * at + 1])};
  }
};

/// What a node's sums over states read: Im Λ and ρ², and what σ and t are multiplied by for cb, cp, pb, pp,
/// re and im in turn. States that are not there count nothing.
struct StateTable {
  double2 pole[table_states];
  double of_sigma[table_states][8], of_t[table_states][8];
  template <class T>
  __device__ void fill(const S4Arguments<T>& a, int64_t from, int64_t d) {
    for (int i = static_cast<int>(threadIdx.x); i < table_states; i += s4_threads) {
      const bool there = from + i < a.states;
      const S4State<T> s(a, there ? from + i : a.states - 1, d);
      const double one = there ? 1.0 : 0.0;
      const cplx<double> w[4] = {
          one * (conj(s.c) * s.b), one * (conj(s.c) * s.p), one * (conj(s.p) * s.b), {one * norm(s.p), 0}};
      pole[i] = {s.im, s.rho * s.rho};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        of_sigma[i][2 * k] = s.rho * w[k].re, of_sigma[i][2 * k + 1] = s.rho * w[k].im;
        of_t[i][2 * k] = w[k].im, of_t[i][2 * k + 1] = -w[k].re;
      }
    }
  }
};

/// A block's dynamic shared memory.
struct S4Shared {
  double nodes[round_nodes][node_stride];  // of a round: sums, or their gradients; at last the states' sums
  double g[round_nodes];                   // 2τ/Δ
  StateTable table;
};

/// cb, cp, pb, pp of one node.
struct NodeSums {
  cplx<double> cb, cp, pb, pp;
};

/// A channel's transform: its two buffers and the roots.
struct S4Transform {
  cplx<double>*signal, *other;
  const cplx<double>* roots;
  template <class T>
  __device__ S4Transform(const S4Arguments<T>& a, int64_t d) {
    auto* const own = reinterpret_cast<cplx<double>*>(dynamic_shared<S4Shared>() + 1);
    signal = a.scratch ? a.scratch + d * 2 * a.length : own;
    other = signal + a.length;
    roots = a.roots;
    if (roots) return;
    const Roots<double> root{other + a.length, a.length};
    for (int64_t k = threadIdx.x; k < a.length; k += s4_threads) root(k);
    roots = other + a.length;
    __syncthreads();
  }
};

/// τ_k = tan(πk/L) from exp(−2πik/L); the node k = L/2 has none.
__device__ __forceinline__ double node_of(const cplx<double>& root, int64_t k, int64_t length) {
  if (2 * k == length || k >= length) return 0;
  return root.re > 0 ? -root.im * quick_reciprocal(1 + root.re) : (1 - root.re) * quick_reciprocal(-root.im);
}

/// The sums of this lane's node, number first + threadIdx.x; every thread of the block calls it. keep: and
/// they are kept.
template <class T>
__device__ __forceinline__ NodeSums node_sums(const S4Arguments<T>& a, int64_t d, const cplx<double>* roots,
                                              double two_over_step, int64_t first, S4Shared& shared,
                                              bool keep) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int base = static_cast<int>(threadIdx.x) - lane;
  double at[2][2], sums[2][4] = {};  // nodes g, g + 8 of two blocks of 16
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t k = first + base + 8 * i + g;
    at[i / 2][i % 2] = k < a.length ? node_of(roots[k], k, a.length) * two_over_step : 0.0;
  }
  for (int64_t from = 0; from < a.states; from += table_states) {
    if (first == 0 || a.states > table_states) {
      __syncthreads();
      shared.table.fill(a, from, d);
      __syncthreads();
    }
    const int count = static_cast<int>(a.states - from < table_states ? a.states - from : table_states);
#pragma unroll 2
    for (int n = t; n - t < count; n += 4) {
      const double2 pole = shared.table.pole[n];
      const double b[2] = {shared.table.of_sigma[n][g], shared.table.of_t[n][g]};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const double x0 = at[i][0] - pole.x, x1 = at[i][1] - pole.x;
        const double s0 = term_sigma<T>(x0, pole.y), s1 = term_sigma<T>(x1, pole.y);
        mma_f64(sums[i], {s0, s1, s0 * x0, s1 * x1}, b);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int node = base + 8 * i + g;
    const double2 pair = {sums[i / 2][i % 2 * 2], sums[i / 2][i % 2 * 2 + 1]};
    *reinterpret_cast<double2*>(&shared.nodes[node][2 * t]) = pair;
    if (keep && first + node < a.length)
      *reinterpret_cast<double2*>(a.kept + (d * a.length + first + node) * 8 + 2 * t) = pair;
  }
  __syncwarp();
  const NodeSums own = *reinterpret_cast<const NodeSums*>(shared.nodes[threadIdx.x]);
  __syncwarp();
  return own;
}

/// Σ conj(C) B, by one warp; whole in lane 0.
template <class T>
__device__ cplx<double> limit_sum(const S4Arguments<T>& a, int64_t d) {
  cplx<double> sum{0, 0};
  for (int64_t n = threadIdx.x % 32; n < a.states; n += 32) {
    const S4State<T> s(a, n, d);
    sum = sum + conj(s.c) * s.b;
  }
#pragma unroll
  for (int by = 16; by > 0; by /= 2) {
    sum.re += __shfl_xor_sync(0xFFFFFFFFu, sum.re, by);
    sum.im += __shfl_xor_sync(0xFFFFFFFFu, sum.im, by);
  }
  return sum;
}

template <class T>
__global__ void __launch_bounds__(s4_threads, 2) s4_kernel_kernel(S4Arguments<T> a, FftPlan plan, T* k) {
  S4Shared& shared = *dynamic_shared<S4Shared>();
  const int64_t d = blockIdx.x, length = a.length;
  const double step = exp(static_cast<double>(a.log_step[d])), two_over_step = 2 / step;
  const S4Transform fft(a, d);
  for (int64_t first = 0; first < length; first += round_nodes) {
    const NodeSums s = node_sums(a, d, fft.roots, two_over_step, first, shared, a.kept != nullptr);
    const int64_t node = first + threadIdx.x;
    if (node >= length || 2 * node == length) continue;
    const cplx<double> below = reciprocal(cplx<double>{1 + s.pp.re, s.pp.im});
    fft.signal[node] = cplx<double>{1, node_of(fft.roots[node], node, length)} * (s.cb - s.cp * s.pb * below);
  }
  if (length % 2 == 0 && threadIdx.x < 32) {
    const cplx<double> sum = limit_sum(a, d);
    if (threadIdx.x == 0) fft.signal[length / 2] = (step / 2) * sum;
  }
  const cplx<double>* y = block_fft<true>(plan, fft.roots, fft.signal, fft.other);
  const double scale = 1.0 / static_cast<double>(length);
  for (int64_t t = threadIdx.x; t < length; t += s4_threads)
    k[d * length + t] = static_cast<T>(scale * y[t].re);
}

template <class T>
struct S4Gradients {
  T *lambda_re, *lambda_im, *p, *b, *c, *log_step;
};

/// Writes the gradients of a state; returns its part of dlog Δ. `total(k)`: sum number k of StateSums.
template <class T, class Total>
__device__ double write_state(const S4State<T>& s, double half_step, const cplx<double>& at_limit, int64_t at,
                              const S4Gradients<T>& out, const Total& total) {
  const cplx<double> w[4] = {conj(s.c) * s.b, conj(s.c) * s.p, conj(s.p) * s.b, {norm(s.p), 0}};
  cplx<double> dw[4], lambda{0, 0};
  double step = 0;
  for (int i = 0; i < 4; ++i) {
    const double s_re = total(2 * i), s_im = total(2 * i + 1);
    dw[i] = {s.rho * s_re - total(8 + 2 * i + 1), s.rho * s_im + total(8 + 2 * i)};
    const cplx<double> squares = {2 * s.rho * (s.rho * total(16 + 2 * i) - total(24 + 2 * i + 1)) - s_re,
                                  2 * s.rho * (s.rho * total(16 + 2 * i + 1) + total(24 + 2 * i)) - s_im};
    lambda = lambda + conj(w[i]) * squares;
    step += real_dot(w[i], dw[i]);
  }
  step += real_dot(cplx<double>{-s.rho, s.im}, lambda);
  const cplx<double> cb = dw[0] + half_step * at_limit;
  const auto put = [at](T* to, const cplx<double>& value) {
    to[2 * at] = static_cast<T>(value.re), to[2 * at + 1] = static_cast<T>(value.im);
  };
  out.lambda_re[at] = s.clipped ? T(0) : static_cast<T>(lambda.re);
  out.lambda_im[at] = static_cast<T>(lambda.im);
  // of conj(v) w: the gradient of w is v G, that of v is conj(G) w
  put(out.c, conj(cb) * s.b + conj(dw[1]) * s.p);
  put(out.b, s.c * cb + s.p * dw[2]);
  put(out.p, s.c * dw[1] + conj(dw[2]) * s.b + (2 * dw[3].re) * s.p);
  return step + half_step * real_dot(w[0], at_limit);
}

/// Gradients of the four sums of this lane's node, from that of K̂ there.
__device__ __forceinline__ NodeSums sum_gradients(const NodeSums& s, double tau, const cplx<double>& g) {
  const cplx<double> below = reciprocal(cplx<double>{1 + s.pp.re, s.pp.im});
  const cplx<double> cb = conj(cplx<double>{1, tau}) * g, through = -1.0 * (conj(below) * cb);
  return {cb, conj(s.pb) * through, conj(s.cp) * through, -1.0 * (conj(s.cp * s.pb * below) * through)};
}

/// S, T, S₂, U of the file's head, 8 each, for 16 states over 8 nodes a step.
struct StateSums {
  double v[4][4] = {};
  template <class T>
  __device__ __forceinline__ void add(const S4Shared& shared, int node, const double (&im)[2],
                                      const double (&rho_squared)[2]) {
    const int lane = static_cast<int>(threadIdx.x) % 32, row = lane / 4, t = lane % 4;
    const double at[2] = {shared.g[node + t], shared.g[node + t + 4]};
    const double b[2] = {shared.nodes[node + t][row], shared.nodes[node + t + 4][row]};
    double sigma[4], tt[4], sigma2[4], u[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const double x = at[i / 2] - im[i % 2];
      sigma[i] = term_sigma<T>(x, rho_squared[i % 2]), tt[i] = sigma[i] * x;
      sigma2[i] = sigma[i] * sigma[i], u[i] = sigma[i] * tt[i];
    }
    mma_f64(v[0], sigma, b);
    mma_f64(v[1], tt, b);
    mma_f64(v[2], sigma2, b);
    mma_f64(v[3], u, b);
  }
};

/// FFT of dK, then 64 states at a time (16 a warp, four slices of every round of nodes) their sums over
/// nodes.
template <class T, bool kept>
__global__ void __launch_bounds__(s4_threads, 1)
    s4_gradients_kernel(S4Arguments<T> a, FftPlan plan, Rows<T> dk, S4Gradients<T> out) {
  constexpr int slices = 4, block_states = 64, slice_nodes = round_nodes / slices, row = 33;
  S4Shared& shared = *dynamic_shared<S4Shared>();
  double* const totals = &shared.nodes[0][0];  // once the nodes are read
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int tile = thread / 32 % 4, slice = thread / 128;
  const int64_t d = blockIdx.x, length = a.length;
  const double step = exp(static_cast<double>(a.log_step[d])), two_over_step = 2 / step;
  const double scale = 1.0 / static_cast<double>(length);
  const S4Transform fft(a, d);
  for (int64_t t = thread; t < length; t += s4_threads)
    fft.signal[t] = {scale * static_cast<double>(dk.data[d * dk.stride + t]), 0};
  const cplx<double>* spectrum = block_fft<false>(plan, fft.roots, fft.signal, fft.other);
  const cplx<double> at_limit = length % 2 == 0 ? spectrum[length / 2] : cplx<double>{0, 0};
  double step_gradient = 0;  // of warp 0's lanes
  for (int64_t from = 0; from < a.states; from += block_states) {
    double im[2], rho_squared[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t n = from + 16 * tile + 8 * i + lane / 4;
      const S4State<T> s(a, n < a.states ? n : a.states - 1, d);
      im[i] = s.im, rho_squared[i] = s.rho * s.rho;
    }
    StateSums sums;
    for (int64_t first = 0; first < length; first += round_nodes) {
      const int64_t node = first + thread;
      __syncthreads();  // the last round is read
      NodeSums s{};
      if constexpr (!kept)
        s = node_sums(a, d, fft.roots, two_over_step, first, shared, false);
      else if (node < length)
        s = reinterpret_cast<const NodeSums*>(a.kept)[d * length + node];
      const bool there = node < length && 2 * node != length;
      const double tau = there ? node_of(fft.roots[node], node, length) : 0.0;
      *reinterpret_cast<NodeSums*>(shared.nodes[thread]) =
          there ? sum_gradients(s, tau, spectrum[node]) : NodeSums{};
      shared.g[thread] = tau * two_over_step;
      __syncthreads();
      const int64_t past =
          length - first < (slice + 1) * slice_nodes ? length - first : (slice + 1) * slice_nodes;
      for (int k = slice * slice_nodes; k < past; k += 8) sums.template add<T>(shared, k, im, rho_squared);
    }
    // slices 1, 2, 3 hand theirs to slice 0 of the same states, which adds them in this order
    __syncthreads();
    if (slice > 0)
#pragma unroll
      for (int i = 0; i < 16; ++i) totals[((slice - 1) * 16 + i) * 128 + thread % 128] = sums.v[i / 4][i % 4];
    __syncthreads();
    if (slice == 0)
      for (int other = 0; other < slices - 1; ++other)
#pragma unroll
        for (int i = 0; i < 16; ++i) sums.v[i / 4][i % 4] += totals[(other * 16 + i) * 128 + thread];
    __syncthreads();
    if (slice == 0)
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const int state = 16 * tile + lane / 4 + i % 4 / 2 * 8, column = 2 * (lane % 4) + i % 2;
        totals[state * row + i / 4 * 8 + column] = sums.v[i / 4][i % 4];
      }
    __syncthreads();
    double* const steps = shared.g;
    if (thread < block_states) {
      const int64_t n = from + thread;
      steps[thread] = 0;
      if (n < a.states)
        steps[thread] = write_state(S4State<T>(a, n, d), step / 2, at_limit, n * a.channels + d, out,
                                    [&](int k) { return totals[thread * row + k]; });
    }
    __syncthreads();
    if (thread < 32) step_gradient += steps[thread] + steps[thread + 32];
  }
  if (thread >= 32) return;
#pragma unroll
  for (int by = 16; by > 0; by /= 2) step_gradient += __shfl_xor_sync(0xFFFFFFFFu, step_gradient, by);
  if (thread == 0) out.log_step[d] = static_cast<T>(step_gradient);
}

/// What both directions ask for: the roots of one and the transforms' buffers, where they are too long for
/// shared memory.
struct S4Memory {
  Tensor roots, scratch;
  size_t shared = sizeof(S4Shared);
  S4Memory(Context& ctx, int64_t channels, int64_t length) {
    int limit = 0;
    ET_CUDA(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, ctx.device().index));
    const size_t wanted =
        static_cast<size_t>(length) * (length > roots_length ? 2 : 3) * sizeof(cplx<double>);
    const bool fits = length <= shared_length && shared + wanted <= static_cast<size_t>(limit);
    if (fits) shared += wanted;
    if (!fits) scratch = ctx.empty({channels, 4 * length}, DType::f64);
    if (!fits || length > roots_length) roots = ctx.empty({2 * length}, DType::f64);
  }
  template <class T>
  S4Arguments<T> arguments(const Context& ctx, const S4Parameters& in, int64_t length,
                           const Tensor& kept) const {
    S4Arguments<T> a{};
    a.lambda_re = in.lambda_re.data<T>(), a.lambda_im = in.lambda_im.data<T>();
    a.p = in.p.data<T>(), a.b = in.b.data<T>(), a.c = in.c.data<T>(), a.log_step = in.log_step.data<T>();
    a.states = in.lambda_re.dim(0), a.channels = in.lambda_re.dim(1), a.length = length;
    if (roots.defined()) a.roots = fill_roots<double>(ctx, length, roots);
    if (scratch.defined()) a.scratch = reinterpret_cast<cplx<double>*>(scratch.data<double>());
    if (kept.defined()) a.kept = kept.data<double>();
    return a;
  }
};

void s4_kernel_cuda(Context& ctx, const S4Parameters& in, Tensor& k, const Tensor& kept) {
  const int64_t channels = k.dim(0), length = k.dim(1);
  const S4Memory memory(ctx, channels, length);
  dispatch_floating(ctx, "s4_kernel", k.dtype(), [&]<class T>() {
    if (channels == 0) return;
    launch(ctx, s4_kernel_kernel<T>, static_cast<unsigned>(channels), s4_threads, memory.shared,
           memory.arguments<T>(ctx, in, length, kept), FftPlan(length), k.data<T>());
  });
}

void s4_kernel_backward_cuda(Context& ctx, const S4Parameters& in, const Tensor& dk, S4Parameters& gradient,
                             const Tensor& kept) {
  const int64_t channels = dk.dim(0), length = dk.dim(1);
  const S4Memory memory(ctx, channels, length);
  dispatch_floating(ctx, "s4_kernel_backward", dk.dtype(), [&]<class T>() {
    if (channels == 0) return;
    const S4Gradients<T> out = {gradient.lambda_re.data<T>(), gradient.lambda_im.data<T>(),
                                gradient.p.data<T>(),         gradient.b.data<T>(),
                                gradient.c.data<T>(),         gradient.log_step.data<T>()};
    launch(ctx, kept.defined() ? s4_gradients_kernel<T, true> : s4_gradients_kernel<T, false>,
           static_cast<unsigned>(channels), s4_threads, memory.shared,
           memory.arguments<T>(ctx, in, length, kept), FftPlan(length),
           rows_of<T>(dk, "s4_kernel_backward: dK"), out);
  });
}

}  // namespace
}  // namespace eigentrace::kernels
