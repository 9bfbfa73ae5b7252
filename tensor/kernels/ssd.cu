// Scalar-decay linear recurrence, per batch entry b and head h (group g = ⌊h G / H⌋ of q and k):
//   S_i = a_i S_{i−1} + w_i k_i v_iᵀ,   y_i = q_i S_i,   a_i = exp(log_a_i),   S_{−1} = 0
// in chunks of C steps (the structured matrix duality of Dao and Gu, 2024). With A_i the sum of log a from
// the chunk's start to i, D_ij = exp(A_i − A_j) for j ≤ i and 0 above, S the state before the chunk:
//   y_i = Σ_j D_ij w_j (q_i·k_j) v_j + exp(A_i) q_i S
//   S′  = exp(A_end) S + U,   U = Σ_j exp(A_end − A_j) w_j k_j v_jᵀ
// Backward, with R the gradient of S′ and Z_ij = dy_i·v_j:
//   dq_i = Σ_j D_ij w_j Z_ij k_j + exp(A_i) S dy_i           R_before = exp(A_end) R + Σ_i exp(A_i) q_i dy_iᵀ
//   dk_j = Σ_i D_ij w_j Z_ij q_i + exp(A_end − A_j) w_j R v_j
//   dv_j = w_j u_j,  dw_j = u_j·v_j,  u_j = Σ_i D_ij (q_i·k_j) dy_i + exp(A_end − A_j) k_j R
//   dlog_a_t: all that passes through step t. E_ij = D_ij w_j (q_i·k_j) Z_ij for j < t ≤ i, the state's part
//   of y_i for i ≥ t, the part of U from j < t, and exp(A_end) ⟨S, R⟩. Pairs i = j never enter (they would
//   cancel), so a strong decay has the tiny gradient that is right and not the rounding of large sums.
// Sums of log a are held in double: a difference of two is exact to 1e-10 even at log a = −800, below which
// exp is 0 in either type and log a is cut. Exponents are never positive where log a ≤ 0.
// Phases: chunk states (parallel over chunks), prefix over chunks (parallel over elements), outputs (parallel
// over chunks). Row i reads nothing of rows after i.
#include <cmath>

#include "tensor/dispatch.h"
#include "tensor/float32_copies.h"
#include "tensor/heads.h"
#include "tensor/kernels.h"
#include "tensor/kernels/ssd_run.cuh"
#include "tensor/math.h"

namespace eigentrace::kernels {
namespace {

constexpr int64_t longest_chunk = 128, prefix_block = 4096;
constexpr double least_log_a = -800;

struct SsdSizes {
  int64_t B, T, G, H, N, P, chunk, chunks;

  SsdSizes(const Tensor& q, const Tensor& v)
      : B(q.dim(0)), T(q.dim(1)), G(q.dim(2)), H(v.dim(2)), N(q.dim(3)), P(v.dim(3)) {
    chunk = std::max(N, P) <= 64 ? 64 : longest_chunk;
    chunks = (T + chunk - 1) / chunk;
  }
  int64_t state(int64_t b, int64_t h, int64_t c) const { return (b * H + h) * chunks + c; }
  int64_t states() const { return B * H * chunks; }
  int64_t steps(int64_t c) const { return std::min(chunk, T - c * chunk); }
};

/// Decays and weights of the steps of one chunk and head.
template <class T>
struct ChunkFactors {
  double sum[longest_chunk];                           // A_i
  T from_start[longest_chunk], to_end[longest_chunk];  // exp(A_i), exp(A_end − A_i)
  T weight[longest_chunk];
  T decay;  // exp(A_end)
  bool decays, weighs;

  ChunkFactors(const PerStep<const T>& log_a, const PerStep<const T>& w, int64_t b, int64_t h, int64_t t0,
               int64_t n)
      : decay(1), decays(log_a.data), weighs(w.data) {
    for (int64_t i = 0; i < n; ++i) weight[i] = weighs ? w.at(b, t0 + i, h) : T(1);
    if (!decays) {
      for (int64_t i = 0; i < n; ++i) sum[i] = 0, from_start[i] = to_end[i] = 1;
      return;
    }
    double total = 0;
    for (int64_t i = 0; i < n; ++i)
      sum[i] = total += std::max(static_cast<double>(log_a.at(b, t0 + i, h)), least_log_a);
    for (int64_t i = 0; i < n; ++i) {
      from_start[i] = fast_exp(static_cast<T>(sum[i]));
      to_end[i] = fast_exp(static_cast<T>(total - sum[i]));
    }
    decay = fast_exp(static_cast<T>(total));
  }

  /// y_j = x_j D_ij for j ≤ i, 0 for i < j < n
  void decay_row(const T* x, T* y, int64_t i, int64_t n) const {
    if (decays) {
      const double own = sum[i];
#pragma omp simd
      for (int64_t j = 0; j <= i; ++j) y[j] = x[j] * fast_exp(static_cast<T>(own - sum[j]));
    } else {
#pragma omp simd
      for (int64_t j = 0; j <= i; ++j) y[j] = x[j];
    }
    for (int64_t j = i + 1; j < n; ++j) y[j] = 0;
  }
};

/// y_r = c_r x_r, rows of `cols`, y dense.
template <class T>
Matrix<const T> scale_rows(const T* c, Matrix<const T> x, T* y, int64_t rows, int64_t cols) {
  for (int64_t r = 0; r < rows; ++r) {
    const T factor = c[r], *row = x.data + r * x.ld;
#pragma omp simd
    for (int64_t j = 0; j < cols; ++j) y[r * cols + j] = factor * row[j];
  }
  return {y, cols};
}

template <class T>
double dot(const T* x, const T* y, int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) sum += x[j] * y[j];
  return static_cast<double>(sum);
}

template <class T>
struct Ssd {
  SsdSizes size;
  Heads<T> q, k, v;
  PerStep<const T> log_a, w;
  T *states, *decays;  // [B, H, chunks, N, P]: U, then the state before each chunk; [B, H, chunks]

  int64_t group(int64_t h) const { return h * size.G / size.H; }
  T* state(int64_t b, int64_t h, int64_t c) const { return states + size.state(b, h, c) * size.N * size.P; }
  Matrix<const T> keys(int64_t b, int64_t g, int64_t t) const { return k.rows(b, g, t); }
  Matrix<const T> queries(int64_t b, int64_t g, int64_t t) const { return q.rows(b, g, t); }
  Matrix<const T> values(int64_t b, int64_t h, int64_t t) const { return v.rows(b, h, t); }

  /// v_j exp(A_end − A_j) w_j
  Matrix<const T> values_to_end(const ChunkFactors<T>& f, int64_t b, int64_t h, int64_t t0, int64_t n,
                                T* room) const {
    if (!f.decays && !f.weighs) return values(b, h, t0);
    T factor[longest_chunk];
    for (int64_t j = 0; j < n; ++j) factor[j] = f.to_end[j] * f.weight[j];
    return scale_rows<T>(factor, values(b, h, t0), room, n, size.P);
  }
  Matrix<const T> from_start(const ChunkFactors<T>& f, Matrix<const T> x, int64_t n, int64_t cols,
                             T* room) const {
    return f.decays ? scale_rows<T>(f.from_start, x, room, n, cols) : x;
  }

  /// U and exp(A_end) of chunk c. Nothing reads the state after the last chunk.
  void chunk_state(int64_t b, int64_t h, int64_t c, const ChunkFactors<T>& f, T* room) const {
    const int64_t t0 = c * size.chunk, n = size.steps(c);
    decays[size.state(b, h, c)] = f.decay;
    if (c + 1 == size.chunks) {
      for (int64_t e = 0; e < size.N * size.P; ++e) state(b, h, c)[e] = 0;
      return;
    }
    gemm<T>(size.N, size.P, n, 1, keys(b, group(h), t0).t(), values_to_end(f, b, h, t0, n, room), 0,
            Matrix<T>{state(b, h, c), size.P});
  }

  /// In place, for each element: what `own` holds becomes the sum of what came before it, decayed. reverse:
  /// from the last chunk to the first.
  void prefix(T* own, bool reverse) const {
    const int64_t elements = size.N * size.P, blocks = (elements + prefix_block - 1) / prefix_block;
    parallel_rows(size.B * size.H * blocks, [&](int64_t item) {
      const int64_t bh = item / blocks, e0 = item % blocks * prefix_block;
      const int64_t n = std::min(prefix_block, elements - e0);
      T run[prefix_block];
      for (int64_t e = 0; e < n; ++e) run[e] = 0;
      for (int64_t step = 0; step < size.chunks; ++step) {
        const int64_t c = bh * size.chunks + (reverse ? size.chunks - 1 - step : step);
        T* x = own + c * elements + e0;
        const T decay = decays[c];
#pragma omp simd
        for (int64_t e = 0; e < n; ++e) {
          const T u = x[e];
          x[e] = run[e];
          run[e] = decay * run[e] + u;
        }
      }
    });
  }

  /// y of chunk c for all heads of group g, which share q kᵀ. scratch: 2 C² + C max(N, P).
  void outputs(int64_t b, int64_t g, int64_t c, const Heads<T>& y, T* scratch) const {
    const int64_t t0 = c * size.chunk, n = size.steps(c), square = size.chunk * size.chunk;
    T *qk = scratch, *mixed = qk + square, *room = mixed + square;
    gemm<T>(n, n, size.N, 1, queries(b, g, t0), keys(b, g, t0).t(), 0, Matrix<T>{qk, n});
    for (int64_t h = g * size.H / size.G; h < (g + 1) * size.H / size.G; ++h) {
      const ChunkFactors<T> f(log_a, w, b, h, t0, n);
      for (int64_t i = 0; i < n; ++i) {
        T* row = mixed + i * n;
        f.decay_row(qk + i * n, row, i, n);
        if (f.weighs)
#pragma omp simd
          for (int64_t j = 0; j <= i; ++j) row[j] *= f.weight[j];
      }
      gemm<T>(n, size.P, n, 1, Matrix<const T>{mixed, n}, values(b, h, t0), 0, y.rows(b, h, t0));
      if (c > 0)
        gemm<T>(n, size.P, size.N, 1, from_start(f, queries(b, g, t0), n, size.N, room),
                Matrix<const T>{state(b, h, c), size.P}, 1, y.rows(b, h, t0));
    }
  }
};

template <class T>
struct SsdBackward : Ssd<T> {
  using Ssd<T>::size;
  Heads<T> dy, dq, dk, dv;
  PerStep<T> dw;
  T* later;        // [B, H, chunks, N, P]: Σ exp(A_i) q_i dy_iᵀ, then R
  double* dlog_a;  // [B, T, H] or null
  bool wants_q, wants_k, wants_v;

  T* gradient_state(int64_t b, int64_t h, int64_t c) const {
    return later + size.state(b, h, c) * size.N * size.P;
  }

  void chunk_gradient(int64_t b, int64_t h, int64_t c, const ChunkFactors<T>& f, T* room) const {
    const int64_t t0 = c * size.chunk, n = size.steps(c);
    if (c == 0) {
      for (int64_t e = 0; e < size.N * size.P; ++e) gradient_state(b, h, c)[e] = 0;
      return;
    }
    gemm<T>(size.N, size.P, n, 1, this->queries(b, this->group(h), t0).t(),
            this->from_start(f, Matrix<const T>(dy.rows(b, h, t0)), n, size.P, room), 0,
            Matrix<T>{gradient_state(b, h, c), size.P});
  }

  static int64_t scratch_elements(const SsdSizes& s) {
    return 4 * s.chunk * s.chunk + s.chunk * (3 * s.N + 2 * s.P);
  }

  /// Gradients of chunk c for group g and all its heads.
  void gradients(int64_t b, int64_t g, int64_t c, T* scratch) const {
    const int64_t t0 = c * size.chunk, n = size.steps(c), square = size.chunk * size.chunk, N = size.N,
                  P = size.P;
    T *qk = scratch, *z = qk + square, *mixed = z + square, *both = mixed + square;
    T *dq_sum = both + square, *dk_sum = dq_sum + size.chunk * N, *wide = dk_sum + size.chunk * N;
    T *u = wide + size.chunk * N, *room = u + size.chunk * P;
    const Matrix<const T> queries = this->queries(b, g, t0), keys = this->keys(b, g, t0);
    gemm<T>(n, n, N, 1, queries, keys.t(), 0, Matrix<T>{qk, n});
    const bool more = c + 1 < size.chunks;
    for (int64_t e = 0; e < n * N; ++e) dq_sum[e] = dk_sum[e] = 0;
    for (int64_t e = 0; e < n * n; ++e) both[e] = 0;
    for (int64_t h = g * size.H / size.G; h < (g + 1) * size.H / size.G; ++h) {
      const ChunkFactors<T> f(this->log_a, this->w, b, h, t0, n);
      const Matrix<const T> cotangent = dy.rows(b, h, t0), values = this->values(b, h, t0);
      double out[longest_chunk] = {}, in[longest_chunk] = {};  // through-flow: ends at i, starts at j
      gemm<T>(n, n, P, 1, cotangent, values.t(), 0, Matrix<T>{z, n});
      for (int64_t i = 0; i < n; ++i) {
        T *row = mixed + i * n, *z_row = z + i * n, *sum = both + i * n;
        const T* qk_row = qk + i * n;
        f.decay_row(qk_row, row, i, n);
        f.decay_row(z_row, z_row, i, n);
#pragma omp simd
        for (int64_t j = 0; j <= i; ++j) {
          z_row[j] *= f.weight[j];
          sum[j] += z_row[j];
        }
        if (dlog_a) {
          double total = 0;
#pragma omp simd reduction(+ : total)
          for (int64_t j = 0; j < i; ++j) {
            const double e = static_cast<double>(z_row[j] * qk_row[j]);
            total += e;
            in[j] += e;
          }
          out[i] = total;
        }
      }
      gemm<T>(n, P, n, 1, Matrix<const T>{mixed, n, true}, cotangent, 0, Matrix<T>{u, P});
      double passed = 0;
      double from_state[longest_chunk] = {}, to_state[longest_chunk] = {};
      if (c > 0) {
        const Matrix<const T> before{this->state(b, h, c), P};
        gemm<T>(n, N, P, 1, this->from_start(f, cotangent, n, P, room), before.t(), 0, Matrix<T>{wide, N});
        for (int64_t e = 0; e < n * N; ++e) dq_sum[e] += wide[e];
        for (int64_t i = 0; i < n && dlog_a; ++i)
          from_state[i] = dot(wide + i * N, queries.data + i * queries.ld, N);
      }
      if (more) {
        const Matrix<const T> after{gradient_state(b, h, c), P};
        gemm<T>(n, N, P, 1, this->values_to_end(f, b, h, t0, n, room), after.t(), 0, Matrix<T>{wide, N});
        for (int64_t e = 0; e < n * N; ++e) dk_sum[e] += wide[e];
        for (int64_t j = 0; j < n && dlog_a; ++j) to_state[j] = dot(wide + j * N, keys.data + j * keys.ld, N);
        gemm<T>(n, P, N, 1, f.decays ? scale_rows<T>(f.to_end, keys, wide, n, N) : keys, after, 1,
                Matrix<T>{u, P});
        if (c > 0 && dlog_a)
          passed = static_cast<double>(f.decay) * dot(this->state(b, h, c), gradient_state(b, h, c), N * P);
      }
      if (dw.data)
        for (int64_t j = 0; j < n; ++j)
          dw.at(b, t0 + j, h) = static_cast<T>(dot(u + j * P, values.data + j * values.ld, P));
      if (wants_v) {
        const Matrix<T> to = dv.rows(b, h, t0);
        for (int64_t j = 0; j < n; ++j)
#pragma omp simd
          for (int64_t p = 0; p < P; ++p) to.data[j * to.ld + p] = f.weight[j] * u[j * P + p];
      }
      if (dlog_a) {
        double after = 0, before = passed;  // Σ_{i≥t} (out − in + from_state), passed + Σ_{j<t} to_state
        double starts[longest_chunk];
        for (int64_t t = 0; t < n; ++t) starts[t] = before, before += to_state[t];
        for (int64_t t = n - 1; t >= 0; --t) {
          after += out[t] - in[t] + from_state[t];
          dlog_a[(b * size.T + t0 + t) * size.H + h] = after + starts[t];
        }
      }
    }
    const Matrix<const T> pairs{both, n};
    const auto finish = [&](Matrix<const T> a, Matrix<const T> x, T* sum, const Heads<T>& to) {
      gemm<T>(n, N, n, 1, a, x, 1, Matrix<T>{sum, N});
      const Matrix<T> rows = to.rows(b, g, t0);
      for (int64_t i = 0; i < n; ++i)
        for (int64_t e = 0; e < N; ++e) rows.data[i * rows.ld + e] = sum[i * N + e];
    };
    if (wants_q) finish(pairs, keys, dq_sum, dq);
    if (wants_k) finish(pairs.t(), queries, dk_sum, dk);
  }
};

template <class T>
Ssd<T> make(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_a, const Tensor& w,
            const Tensor& states, const Tensor& decays) {
  return {SsdSizes(q, v),           heads_of<T>(q, "ssd: q"), heads_of<T>(k, "ssd: k"),
          heads_of<T>(v, "ssd: v"), PerStep<const T>(log_a),  PerStep<const T>(w),
          states.data<T>(),         decays.data<T>()};
}

void check(const char* what, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_a,
           const Tensor& w, const Tensor& y) {
  bool good = q.rank() == 4 && q.shape() == k.shape() && v.rank() == 4 && v.shape() == y.shape() &&
              q.dim(0) == v.dim(0) && q.dim(1) == v.dim(1) && q.dim(2) > 0 && v.dim(2) % q.dim(2) == 0 &&
              q.dtype() == k.dtype() && q.dtype() == v.dtype() && q.dtype() == y.dtype();
  const Shape steps = good ? v.shape().without(3) : Shape{};
  if (good && log_a.defined())
    good = (log_a.shape() == steps || log_a.shape() == Shape{v.dim(2)}) && log_a.dtype() == q.dtype();
  if (good && w.defined()) good = w.shape() == steps && w.dtype() == q.dtype();
  if (!good)
    fail(std::string(what) +
         ": q, k [B, T, G, N], v, y [B, T, H, P], G a divisor of H, log_a [B, T, H] or [H], w [B, T, H] of "
         "one "
         "type expected, found " +
         to_string(q) + ", " + to_string(k) + ", " + to_string(v) + ", " + to_string(y) +
         (log_a.defined() ? ", " + to_string(log_a) : "") + (w.defined() ? ", " + to_string(w) : ""));
}

void check_skip(const Context& ctx, const Tensor& q, const Tensor& v, const Tensor& skip) {
  if (!attention_is_fused(ctx, q.dtype(), q.dim(3), v.dim(3)))
    fail("ssd_skip: float32 on CUDA with N, P up to 128 expected, found " + to_string(q) + ", " +
         to_string(v) + "; use ssd and add the skip");
  if (!(skip.shape() == Shape{v.dim(2)}) || skip.dtype() != v.dtype())
    fail("ssd_skip: skip [H] of the operands' type expected, found " + to_string(skip));
}

}  // namespace

void ssd(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_a,
         const Tensor& w, Tensor& y, [[maybe_unused]] const Tensor& kept) {
  if (in_float32(ctx, ssd, q, k, v, log_a, w, y, kept)) return;
  check("ssd", q, k, v, log_a, w, y);
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda()) return run_cuda(ctx, {q, k, v, log_a, w, y, {}, {}, {}, {}, {}, {}}, kept);
#endif
  require_cpu(ctx, "ssd");
  const SsdSizes size(q, v);
  const int64_t square = size.chunk * size.chunk,
                elements = 2 * square + size.chunk * std::max(size.N, size.P);
  Tensor states = ctx.empty({size.states(), size.N, size.P}, q.dtype()),
         decays = ctx.empty({size.states()}, q.dtype());
  Tensor scratch = ctx.empty({omp_get_max_threads(), elements}, q.dtype());
  dispatch_floating(ctx, "ssd", q.dtype(), [&]<class T>() {
    const Ssd<T> s = make<T>(q, k, v, log_a, w, states, decays);
    const Heads<T> out = heads_of<T>(y, "ssd: y");
    const ThreadScratch<T> room{scratch.data<T>(), elements};
    parallel_items(size.states(), [&](int64_t item) {
      const int64_t c = item % size.chunks, bh = item / size.chunks, b = bh / size.H, h = bh % size.H;
      s.chunk_state(b, h, c, ChunkFactors<T>(s.log_a, s.w, b, h, c * size.chunk, size.steps(c)), room.mine());
    });
    s.prefix(s.states, false);
    parallel_items(size.B * size.G * size.chunks, [&](int64_t item) {
      const int64_t bg = item / size.chunks;
      s.outputs(bg / size.G, bg % size.G, item % size.chunks, out, room.mine());
    });
  });
}

void ssd_backward(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_a,
                  const Tensor& w, const Tensor& dy, Tensor& dq, Tensor& dk, Tensor& dv, Tensor& dlog_a,
                  Tensor& dw, [[maybe_unused]] const Tensor& kept) {
  if (in_float32(ctx, ssd_backward, q, k, v, log_a, w, dy, dq, dk, dv, dlog_a, dw, kept)) return;
  check("ssd_backward", dq.defined() ? dq : q, dk.defined() ? dk : k, dv.defined() ? dv : v,
        dlog_a.defined() ? dlog_a : log_a, dw.defined() ? dw : w, dy);
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda()) return run_cuda(ctx, {q, k, v, log_a, w, {}, dy, dq, dk, dv, dlog_a, dw}, kept);
#endif
  require_cpu(ctx, "ssd_backward");
  const SsdSizes size(q, v);
  Tensor states = ctx.empty({size.states(), size.N, size.P}, q.dtype()), later = ctx.empty_like(states),
         decays = ctx.empty({size.states()}, q.dtype());
  Tensor flow = ctx.empty({dlog_a.defined() ? size.B * size.T * size.H : 0}, DType::f64);
  const int64_t elements = SsdBackward<float>::scratch_elements(size);
  Tensor scratch = ctx.empty({omp_get_max_threads(), elements}, q.dtype());
  dispatch_floating(ctx, "ssd_backward", q.dtype(), [&]<class T>() {
    const auto out = [](const Tensor& x) {
      return x.defined() ? heads_of<T>(x, "ssd_backward") : Heads<T>{};
    };
    const SsdBackward<T> s{make<T>(q, k, v, log_a, w, states, decays),
                           heads_of<T>(dy, "ssd_backward: dy"),
                           out(dq),
                           out(dk),
                           out(dv),
                           PerStep<T>(dw),
                           later.data<T>(),
                           dlog_a.defined() ? flow.data<double>() : nullptr,
                           dq.defined(),
                           dk.defined(),
                           dv.defined()};
    const ThreadScratch<T> room{scratch.data<T>(), elements};
    parallel_items(size.states(), [&](int64_t item) {
      const int64_t c = item % size.chunks, bh = item / size.chunks, b = bh / size.H, h = bh % size.H;
      const ChunkFactors<T> f(s.log_a, s.w, b, h, c * size.chunk, size.steps(c));
      s.chunk_state(b, h, c, f, room.mine());
      s.chunk_gradient(b, h, c, f, room.mine());
    });
    s.prefix(s.states, false);
    s.prefix(s.later, true);
    parallel_items(size.B * size.G * size.chunks, [&](int64_t item) {
      const int64_t bg = item / size.chunks;
      s.gradients(bg / size.G, bg % size.G, item % size.chunks, room.mine());
    });
    if (!dlog_a.defined()) return;
    const PerStep<T> to(dlog_a);
    const double* from = flow.data<double>();
    if (dlog_a.rank() == 3)
      parallel_rows(size.B * size.T, [&](int64_t bt) {
        for (int64_t h = 0; h < size.H; ++h)
          to.at(bt / size.T, bt % size.T, h) = static_cast<T>(from[bt * size.H + h]);
      });
    else
      parallel_rows(size.H, [&](int64_t h) {
        double sum = 0;
        for (int64_t bt = 0; bt < size.B * size.T; ++bt) sum += from[bt * size.H + h];
        to.at(0, 0, h) = static_cast<T>(sum);
      });
  });
}

bool attention_is_fused(const Context& ctx, DType dtype, int64_t N, int64_t P) {
#ifdef EIGENTRACE_WITH_CUDA
  return ctx.device().is_cuda() && N > 0 && ssd_is_fast(dtype, N, P);
#else
  return (void)ctx, (void)dtype, (void)N, (void)P, false;
#endif
}

Tensor ssd_kept(Context& ctx, const Tensor& q, const Tensor& v, const Tensor& log_a, const Tensor& w) {
#ifdef EIGENTRACE_WITH_CUDA
  if (q.rank() == 4 && v.rank() == 4 && v.numel() > 0 &&
      attention_is_fused(ctx, arithmetic_type(q.dtype()), q.dim(3), v.dim(3)))
    return fast_kept(ctx, q, v, log_a.defined() || w.defined(), false);
#endif
  return (void)ctx, (void)q, (void)v, (void)log_a, (void)w, Tensor();
}

void ssd_skip(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_a,
              const Tensor& w, const Tensor& skip, Tensor& y, [[maybe_unused]] const Tensor& kept) {
  if (in_float32(ctx, ssd_skip, q, k, v, log_a, w, skip, y, kept)) return;
  check("ssd_skip", q, k, v, log_a, w, y);
  check_skip(ctx, q, v, skip);
#ifdef EIGENTRACE_WITH_CUDA
  if (y.numel() == 0) return;
  SsdExtras extras;
  extras.skip = skip;
  run_fast(ctx, {q, k, v, log_a, w, y, {}, {}, {}, {}, {}, {}}, extras, kept);
#endif
}

void ssd_skip_backward(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& log_a,
                       const Tensor& w, const Tensor& skip, const Tensor& dy, Tensor& dq, Tensor& dk,
                       Tensor& dv, Tensor& dlog_a, Tensor& dw, Tensor& dskip,
                       [[maybe_unused]] const Tensor& kept) {
  if (in_float32(ctx, ssd_skip_backward, q, k, v, log_a, w, skip, dy, dq, dk, dv, dlog_a, dw, dskip, kept))
    return;
  check("ssd_skip_backward", dq.defined() ? dq : q, dk.defined() ? dk : k, dv.defined() ? dv : v,
        dlog_a.defined() ? dlog_a : log_a, dw.defined() ? dw : w, dy);
  check_skip(ctx, q, v, dskip.defined() ? dskip : skip);
#ifdef EIGENTRACE_WITH_CUDA
  if (dy.numel() == 0) return;
  SsdExtras extras;
  extras.skip = skip, extras.dskip = dskip;
  run_fast(ctx, {q, k, v, log_a, w, {}, dy, dq, dk, dv, dlog_a, dw}, extras, kept);
#endif
}

}  // namespace eigentrace::kernels
