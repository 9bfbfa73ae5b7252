#pragma once
// S4's kernel on CUDA, a block a channel, in double as on the CPU (an H200 makes half as many products in
// double as in float32, so splitting operands would win nothing).
//
// With x = g − Im Λ, ρ = −Re Λ, σ = 1/(x² + ρ²), t = σx the resolvent is r = ρσ − i t. A node's seven sums
// cost 14 fused multiply-adds a state on (σ, t) once ρw is tabled, and 7 operations for σ and t.
// Backward, the same two numbers and their products σ², σt are summed against the gradients of the four sums,
// 31 multiply-adds a term: S = Σ σG, T = Σ tG, S₂ = Σ σ²G, U = Σ σtG, from which (t² = σ − ρ²σ²)
//
//   dW = Σ conj(r) G = ρS + iT,   Σ conj(r)² G = 2ρ²S₂ − S + 2iρU,   dΛ = Σ_vw conj(W) Σ conj(r)² G
//   dlog Δ = Re(conj(Λ) dΛ) + Re Σ_vw conj(W) dW    (g = Λ + 1/r: no sum over nodes of its own)
//
// Terms: MQAR 128·128·512 = 8.4e6 (12 µs forward, 22 µs backward at 14.8e12 products/s), CIFAR 512·64·1024 =
// 3.4e7 (48 µs, 88 µs). The forward sums are kept for the backward pass, 64 bytes a node (MQAR 4 MB, CIFAR
// 34 MB).
#include "tensor/cplx.h"
#include "tensor/kernels/block_fft.cuh"

namespace eigentrace::kernels {
namespace {

constexpr int s4_threads = 512;
constexpr int table_states = 128;                    // of a walk through the states, for sums of nodes
constexpr int block_states = 64, block_nodes = 128;  // of sums of states
constexpr int64_t roots_length = 1024;               // up to here a block makes its own roots
constexpr int64_t shared_length = 2048;              // and up to here its transform fits shared memory

template <class T>
struct S4Arguments {
  const T *lambda_re, *lambda_im, *p, *b, *c, *log_step;
  int64_t states, channels, length;
  const cplx<double>* roots;  // null: made in shared memory
  cplx<double>* scratch;      // [channels, 2, length], or null: shared memory
  double* kept;               // [channels, length, 8]: every node's four sums; null: not wanted
};

/// 1/a to the last bits for 1e−30 < a < 1e30, without division's checks.
__device__ __forceinline__ double quick_reciprocal(double a) {
#ifdef EIGENTRACE_EMULATE
  return 1.0 / a;
#else
  double y;
  asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(y) : "d"(a));
  double e = fma(-a, y, 1.0);
  e = fma(e, e, e);
  return fma(y, e, y);
#endif
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

/// What a node's loop over states reads: ρ², Im Λ, and w and ρw of the sums cb, cp, pb, pp.
struct StateTable {
  double values[table_states][16];
  template <class T>
  __device__ void fill(const S4Arguments<T>& a, int64_t from, int64_t d) {
    for (int i = static_cast<int>(threadIdx.x); i < table_states; i += static_cast<int>(blockDim.x)) {
      if (from + i >= a.states) continue;
      const S4State<T> s(a, from + i, d);
      const cplx<double> cb = conj(s.c) * s.b, cp = conj(s.c) * s.p, pb = conj(s.p) * s.b;
      const double w[7] = {cb.re, cb.im, cp.re, cp.im, pb.re, pb.im, norm(s.p)};
      values[i][0] = s.rho * s.rho, values[i][1] = s.im;
      for (int k = 0; k < 7; ++k) values[i][2 + k] = w[k], values[i][9 + k] = s.rho * w[k];
    }
  }
};

/// cb, cp, pb, pp of one node, re and im in turn.
struct NodeSums {
  double v[8] = {};
  __device__ __forceinline__ void add(const double (&state)[16], double g) {
    const double x = g - state[1], sigma = quick_reciprocal(fma(x, x, state[0])), t = sigma * x;
#pragma unroll
    for (int k = 0; k < 6; k += 2) {
      v[k] = fma(sigma, state[9 + k], fma(t, state[3 + k], v[k]));
      v[k + 1] = fma(sigma, state[10 + k], fma(-t, state[2 + k], v[k + 1]));
    }
    v[6] = fma(sigma, state[15], v[6]);
    v[7] = fma(-t, state[8], v[7]);
  }
  __device__ cplx<double> operator[](int k) const { return {v[2 * k], v[2 * k + 1]}; }
};

/// τ_k = tan(πk/L); the node k = L/2 has none.
__device__ __forceinline__ double node_of(int64_t k, int64_t length) {
  if (2 * k == length) return 0;
  double s, c;
  sincospi(static_cast<double>(k) / static_cast<double>(length), &s, &c);
  return s / c;
}

/// Calls body(k, τ, sums, Σ conj(C) B) for every node of the channel; the last is for the node without τ
/// only.
template <class T, class Body>
__device__ void for_each_node(const S4Arguments<T>& a, int64_t d, double two_over_step, StateTable& table,
                              const Body& body) {
  for (int64_t first = 0; first < a.length; first += 2 * s4_threads) {  // two nodes a walk through the states
    const int64_t k0 = first + threadIdx.x, k1 = k0 + s4_threads;
    const bool two = first + s4_threads < a.length, at_limit = 2 * k0 == a.length || 2 * k1 == a.length;
    const double tau0 = node_of(k0, a.length), tau1 = node_of(k1, a.length);
    const double g0 = tau0 * two_over_step, g1 = tau1 * two_over_step;
    NodeSums sums0, sums1;
    cplx<double> limit{0, 0};
    for (int64_t from = 0; from < a.states; from += table_states) {
      const int count = static_cast<int>(a.states - from < table_states ? a.states - from : table_states);
      __syncthreads();
      table.fill(a, from, d);
      __syncthreads();
      if (two) {
        for (int n = 0; n < count; ++n) sums0.add(table.values[n], g0), sums1.add(table.values[n], g1);
      } else {
#pragma unroll 2
        for (int n = 0; n < count; ++n) sums0.add(table.values[n], g0);
      }
      if (at_limit)
        for (int n = 0; n < count; ++n) limit.re += table.values[n][2], limit.im += table.values[n][3];
    }
    if (k0 < a.length) body(k0, tau0, sums0, limit);
    if (k1 < a.length) body(k1, tau1, sums1, limit);
  }
}

/// A channel's transform: its two buffers and the roots.
struct S4Transform {
  cplx<double>*signal, *other;
  const cplx<double>* roots;
  template <class T>
  __device__ S4Transform(const S4Arguments<T>& a, int64_t d) {
    signal = a.scratch ? a.scratch + d * 2 * a.length : dynamic_shared<cplx<double>>();
    other = signal + a.length;
    roots = a.roots;
    if (roots) return;
    cplx<double>* const own = other + a.length;
    const Roots<double> root{own, a.length};
    for (int64_t k = threadIdx.x; k < a.length; k += s4_threads) root(k);
    roots = own;
  }
};

template <class T>
__global__ void __launch_bounds__(s4_threads) s4_kernel_kernel(S4Arguments<T> a, FftPlan plan, T* k) {
  __shared__ StateTable table;
  const int64_t d = blockIdx.x, length = a.length;
  const double step = exp(static_cast<double>(a.log_step[d]));
  const S4Transform fft(a, d);
  for_each_node(a, d, 2 / step, table,
                [&](int64_t node, double tau, const NodeSums& s, const cplx<double>& limit) {
                  const cplx<double> below = reciprocal(cplx<double>{1 + s.v[6], s.v[7]});
                  const cplx<double> inner = s[0] - s[1] * s[2] * below;
                  fft.signal[node] = 2 * node == length ? (step / 2) * limit : cplx<double>{1, tau} * inner;
                  if (!a.kept) return;
                  double* const to = a.kept + (d * length + node) * 8;
#pragma unroll
                  for (int i = 0; i < 8; ++i) to[i] = s.v[i];
                });
  const cplx<double>* y = block_fft<true>(plan, fft.roots, fft.signal, fft.other);
  const double scale = 1.0 / static_cast<double>(length);
  for (int64_t t = threadIdx.x; t < length; t += s4_threads)
    k[d * length + t] = static_cast<T>(scale * y[t].re);
}

/// From here on the nodes of a channel: what its states' sums read.
struct S4Nodes {
  double* g;               // [channels, length]: 2τ/Δ
  double* gradients;       // [channels, length, 8]: of the four sums
  cplx<double>* at_limit;  // [channels]: of K̂ at the node without τ
};

template <class T>
__global__ void __launch_bounds__(s4_threads)
    s4_sum_gradients_kernel(S4Arguments<T> a, FftPlan plan, Rows<T> dk, S4Nodes out) {
  __shared__ StateTable table;
  const int64_t d = blockIdx.x, length = a.length;
  const double step = exp(static_cast<double>(a.log_step[d])), scale = 1.0 / static_cast<double>(length);
  const S4Transform fft(a, d);
  for (int64_t t = threadIdx.x; t < length; t += s4_threads)
    fft.signal[t] = {scale * static_cast<double>(dk.data[d * dk.stride + t]), 0};
  const cplx<double>* spectrum = block_fft<false>(plan, fft.roots, fft.signal, fft.other);
  if (threadIdx.x == 0) out.at_limit[d] = length % 2 == 0 ? spectrum[length / 2] : cplx<double>{0, 0};
  const auto node_gradient = [&](int64_t node, double tau, const NodeSums& s, const cplx<double>&) {
    const cplx<double> g = 2 * node == length ? cplx<double>{0, 0} : spectrum[node];
    const cplx<double> below = reciprocal(cplx<double>{1 + s.v[6], s.v[7]});
    const cplx<double> cb = conj(cplx<double>{1, tau}) * g, through = -1.0 * (conj(below) * cb);
    const cplx<double> cp = conj(s[2]) * through, pb = conj(s[1]) * through;
    const cplx<double> pp = -1.0 * (conj(s[1] * s[2] * below) * through);
    out.g[d * length + node] = tau * (2 / step);
    double* to = out.gradients + (d * length + node) * 8;
    to[0] = cb.re, to[1] = cb.im, to[2] = cp.re, to[3] = cp.im;
    to[4] = pb.re, to[5] = pb.im, to[6] = pp.re, to[7] = pp.im;
  };
  if (!a.kept) return for_each_node(a, d, 2 / step, table, node_gradient);
  for (int64_t node = threadIdx.x; node < length; node += s4_threads) {
    NodeSums s;
#pragma unroll
    for (int i = 0; i < 8; ++i) s.v[i] = a.kept[(d * length + node) * 8 + i];
    node_gradient(node, node_of(node, length), s, {});
  }
}

template <class T>
struct S4Gradients {
  T *lambda_re, *lambda_im, *p, *b, *c, *log_step;
};

/// Sums over nodes of one state: S, T, S₂, U of the file's head, 8 each.
struct StateSums {
  double v[32] = {};
  __device__ __forceinline__ void add(double x, double rho_squared, const double* g) {
    const double sigma = quick_reciprocal(fma(x, x, rho_squared)), t = sigma * x;
    const double sigma2 = sigma * sigma, u = sigma * t;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      v[k] = fma(sigma, g[k], v[k]);
      v[8 + k] = fma(t, g[k], v[8 + k]);
      v[16 + k] = fma(sigma2, g[k], v[16 + k]);
      v[24 + k] = fma(u, g[k], v[24 + k]);
    }
  }
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

/// 64 states of a channel × 8 slices of its nodes, block of states after block of states.
template <class T>
__global__ void __launch_bounds__(s4_threads)
    s4_state_gradients_kernel(S4Arguments<T> a, S4Nodes nodes, S4Gradients<T> out) {
  constexpr int slices = s4_threads / block_states, own_nodes = block_nodes / slices;
  constexpr int own_loads = block_nodes * 8 / s4_threads;
  __shared__ double node[block_nodes], g[block_nodes][8], steps[block_states];
  __shared__ double shared_totals[slices][slices][block_states];
  const int thread = static_cast<int>(threadIdx.x), i = thread % block_states, slice = thread / block_states;
  const int64_t d = blockIdx.x;
  const double step = exp(static_cast<double>(a.log_step[d]));
  const double *all_g = nodes.g + d * a.length, *all = nodes.gradients + d * a.length * 8;
  double next_node = 0, next[own_loads];
  const auto load = [&](int64_t first) {
    next_node = thread < block_nodes && first + thread < a.length ? all_g[first + thread] : 0.0;
#pragma unroll
    for (int k = 0; k < own_loads; ++k) {
      const int64_t at = first * 8 + k * s4_threads + thread;
      next[k] = at < a.length * 8 ? all[at] : 0.0;
    }
  };
  double step_gradient = 0;  // of thread 0
  for (int64_t from = 0; from < a.states; from += block_states) {
    load(0);
    const int64_t n = from + i < a.states ? from + i : a.states - 1;
    const S4State<T> first_look(a, n, d);
    const double rho_squared = first_look.rho * first_look.rho, im = first_look.im;
    StateSums sums;
    for (int64_t first = 0; first < a.length; first += block_nodes) {
      __syncthreads();
      if (thread < block_nodes) node[thread] = next_node;
#pragma unroll
      for (int k = 0; k < own_loads; ++k) (&g[0][0])[k * s4_threads + thread] = next[k];
      __syncthreads();
      if (first + block_nodes < a.length) load(first + block_nodes);
      for (int k = slice * own_nodes; k < (slice + 1) * own_nodes; ++k)
        sums.add(node[k] - im, rho_squared, g[k]);
    }
    // eight sums at a time: thread (slice, i) adds number 8 round + slice over the slices
    double totals[4];
#pragma unroll
    for (int round = 0; round < 4; ++round) {
      __syncthreads();
#pragma unroll
      for (int v = 0; v < 8; ++v) shared_totals[v][slice][i] = sums.v[8 * round + v];
      __syncthreads();
      totals[round] = 0;
      for (int s = 0; s < slices; ++s) totals[round] += shared_totals[slice][s][i];
    }
    __syncthreads();
    for (int round = 0; round < 4; ++round) shared_totals[round][slice][i] = totals[round];
    __syncthreads();
    if (slice == 0) {
      steps[i] = 0;
      if (from + i < a.states)
        steps[i] = write_state(S4State<T>(a, n, d), step / 2, nodes.at_limit[d], n * a.channels + d, out,
                               [&](int k) { return shared_totals[k / 8][k % 8][i]; });
    }
    __syncthreads();
    if (thread == 0)
      for (int k = 0; k < block_states; ++k) step_gradient += steps[k];
  }
  if (thread == 0) out.log_step[d] = static_cast<T>(step_gradient);
}

/// What both directions ask for: the roots of one and the transforms' buffers, where they are too long for
/// shared memory.
struct S4Memory {
  Tensor roots, scratch;
  size_t shared = 0;
  S4Memory(Context& ctx, int64_t channels, int64_t length) {
    if (length > roots_length) roots = ctx.empty({2 * length}, DType::f64);
    if (length > shared_length)
      scratch = ctx.empty({channels, 4 * length}, DType::f64);
    else
      shared = static_cast<size_t>(length) * (roots.defined() ? 2 : 3) * sizeof(cplx<double>);
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
  const Tensor g = ctx.empty({channels, length}, DType::f64);
  const Tensor gradients = ctx.empty({channels, length, 8}, DType::f64);
  const Tensor limits = ctx.empty({channels, 2}, DType::f64);
  dispatch_floating(ctx, "s4_kernel_backward", dk.dtype(), [&]<class T>() {
    if (channels == 0) return;
    const S4Arguments<T> a = memory.arguments<T>(ctx, in, length, kept);
    const S4Nodes nodes{g.data<double>(), gradients.data<double>(),
                        reinterpret_cast<cplx<double>*>(limits.data<double>())};
    launch(ctx, s4_sum_gradients_kernel<T>, static_cast<unsigned>(channels), s4_threads, memory.shared, a,
           FftPlan(length), rows_of<T>(dk, "s4_kernel_backward: dK"), nodes);
    const S4Gradients<T> out = {gradient.lambda_re.data<T>(), gradient.lambda_im.data<T>(),
                                gradient.p.data<T>(),         gradient.b.data<T>(),
                                gradient.c.data<T>(),         gradient.log_step.data<T>()};
    launch(ctx, s4_state_gradients_kernel<T>, static_cast<unsigned>(channels), s4_threads, 0, a, nodes, out);
  });
}

}  // namespace
}  // namespace eigentrace::kernels
