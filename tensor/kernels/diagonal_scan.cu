// Diagonal complex recurrence of LRU (arXiv 2303.06349) and S5 (arXiv 2208.04933):
//
//   h_i = λ h_{i−1} + x_i,   h_{−1} = 0,   λ_n = exp(log_abs_n + i arg_n)
//
// and backward, with g the gradient of h including all later steps:
//
//   g_i = dh_i + conj(λ) g_{i+1} = dx_i,   Q = Σ_i g_i conj(h_{i−1}),
//   dlog_abs = Re(conj(Q) λ),   darg = −Im(conj(Q) λ)
//
// Complex rows are [re, im] of 2N numbers, so that the products before and after the scan are one GEMM each.
// Lanes run over N. Time is cut into segments only where batch and states alone give too few independent
// pieces: then the end state of each segment is computed from zero, carried on with λ^length (in double, then
// rounded), and each segment runs from its true initial state.
#include <algorithm>
#include <cmath>

#include "tensor/dispatch.h"
#include "tensor/kernels.h"
#include "tensor/lanes.h"
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/kernels/diagonal_scan_cuda.cuh"
#endif

namespace eigentrace::kernels {
namespace {

constexpr int64_t group = 4;           // lane vectors an item advances together: hides the latency of h
constexpr int64_t wanted_pieces = 16;  // independent items worth having
constexpr int64_t min_segment = 256;   // steps below which a segment is not worth its carry
constexpr int64_t flush_steps = 64;    // steps summed in the element type before Q is added up in double

/// How [B,T,N] is cut; a function of the shape alone.
struct Pieces {
  int64_t batch, time, states, width, blocks, segments, length;
  Pieces(const Tensor& x, DType dtype) {
    batch = x.dim(0), time = x.dim(1), states = x.dim(2) / 2;
    width = group * 64 / static_cast<int64_t>(size_of(dtype));
    blocks = (states + width - 1) / width;
    const int64_t independent = std::max<int64_t>(1, batch * blocks);
    const int64_t wanted = std::min((wanted_pieces + independent - 1) / independent, time / min_segment);
    segments = std::max<int64_t>(1, wanted);
    length = (time + segments - 1) / segments;
  }
};

/// Rows of one batch item in scan order: forwards or backwards in time.
template <class T>
struct Sequence {
  T* data;
  int64_t stride, time;
  bool reverse;
  T* row(int64_t i) const { return data + (reverse ? time - 1 - i : i) * stride; }
};
template <class T>
Sequence<T> sequence(const Rows<T>& rows, int64_t b, int64_t time, bool reverse) {
  return {rows.data + b * time * rows.stride, rows.stride, time, reverse};
}

/// `group` lane vectors of complex numbers.
template <class T>
struct State {
  cplx<Lanes<T>> v[group];

  /// From a row [re, im] of 2·states numbers, `from` the first state.
  void load(const T* row, int64_t from, int64_t states) {
    for (int64_t j = 0; j < group; ++j) {
      const int64_t at = from + j * lane_count<T>, count = states - at;
      v[j].re = load_lanes(row + at, count);
      v[j].im = load_lanes(row + states + at, count);
    }
  }
  void store(T* row, int64_t from, int64_t states) const {
    for (int64_t j = 0; j < group; ++j) {
      const int64_t at = from + j * lane_count<T>, count = states - at;
      store_lanes(row + at, v[j].re, count);
      store_lanes(row + states + at, v[j].im, count);
    }
  }
  void clear() {
    for (auto& c : v) c = complex_zero<Lanes<T>>();
  }
  /// h ← λ h + x
  void advance(const State& lambda, const State& x) {
    for (int64_t j = 0; j < group; ++j) v[j] = lambda.v[j] * v[j] + x.v[j];
  }
};

/// λ^power as a row [re, im], computed in double.
template <class T>
void powers(const T* log_abs, const T* arg, int64_t states, double power, double sign, T* row) {
  for (int64_t n = 0; n < states; ++n) {
    const double radius = exp(power * static_cast<double>(log_abs[n]));
    const double angle = power * static_cast<double>(arg[n]);
    row[n] = static_cast<T>(radius * cos(angle));
    row[states + n] = static_cast<T>(sign * radius * sin(angle));
  }
}

/// Initial state of each segment, [B, segments, 2N]: rows of `carry` hold it afterwards.
template <class T>
void carry_states(const Pieces& p, const Rows<T>& x, bool reverse, const T* lambda, const T* jump, T* carry) {
  const int64_t width2 = 2 * p.states;
  parallel_rows(p.batch * p.segments * p.blocks, [&](int64_t item) {
    const int64_t from = item % p.blocks * p.width, s = item / p.blocks % p.segments;
    const int64_t b = item / p.blocks / p.segments;
    T* mine = carry + (b * p.segments + s) * width2;
    State<T> h, step, decay;
    h.clear();
    if (s > 0) {  // the end of segment s − 1, from zero
      const Sequence<T> xs = sequence(x, b, p.time, reverse);
      decay.load(lambda, from, p.states);
      for (int64_t i = (s - 1) * p.length; i < s * p.length; ++i) {
        step.load(xs.row(i), from, p.states);
        h.advance(decay, step);
      }
    }
    h.store(mine, from, p.states);
  });
  parallel_rows(p.batch * p.blocks, [&](int64_t item) {
    const int64_t from = item % p.blocks * p.width, b = item / p.blocks;
    State<T> h, end, decay;
    decay.load(jump, from, p.states);
    h.clear();
    for (int64_t s = 1; s < p.segments; ++s) {
      T* mine = carry + (b * p.segments + s) * width2;
      end.load(mine, from, p.states);
      h.advance(decay, end);
      h.store(mine, from, p.states);
    }
  });
}

/// Calls body(b, segment, from, first step, past the last step) for every piece.
template <class Body>
void each_piece(const Pieces& p, const Body& body) {
  parallel_rows(p.batch * p.segments * p.blocks, [&](int64_t item) {
    const int64_t s = item / p.blocks % p.segments;
    body(item / p.blocks / p.segments, s, item % p.blocks * p.width, s * p.length,
         std::min(p.time, (s + 1) * p.length));
  });
}

template <class T>
void forward(const Pieces& p, const Rows<T>& x, bool reverse, const T* lambda, const T* carry,
             const Rows<T>& h) {
  each_piece(p, [&](int64_t b, int64_t s, int64_t from, int64_t first, int64_t past) {
    const Sequence<T> xs = sequence(x, b, p.time, reverse), hs = sequence(h, b, p.time, reverse);
    State<T> state, step, decay;
    decay.load(lambda, from, p.states);
    state.load(carry + (b * p.segments + s) * 2 * p.states, from, p.states);
    for (int64_t i = first; i < past; ++i) {
      step.load(xs.row(i), from, p.states);
      state.advance(decay, step);
      state.store(hs.row(i), from, p.states);
    }
  });
}

/// The scan of dh against the direction of the forward one, and Q of each piece, [B, segments, 2N] in double.
template <class T>
void backward(const Pieces& p, const Rows<T>& h, const Rows<T>& dh, bool reverse, const T* lambda,
              const T* carry, const Rows<T>* dx, double* q) {
  each_piece(p, [&](int64_t b, int64_t s, int64_t from, int64_t first, int64_t past) {
    const Sequence<T> hs = sequence(h, b, p.time, !reverse), gs = sequence(dh, b, p.time, !reverse);
    const Sequence<T> out = dx ? sequence(*dx, b, p.time, !reverse) : gs;
    State<T> g, step, decay, sum, previous;
    decay.load(lambda, from, p.states);
    g.load(carry + (b * p.segments + s) * 2 * p.states, from, p.states);
    double* mine = q + (b * p.segments + s) * 2 * p.states;
    const int64_t count = std::min(p.width, p.states - from);
    for (int64_t n = from; n < from + count; ++n) mine[n] = mine[p.states + n] = 0;
    for (int64_t start = first; start < past; start += flush_steps) {
      sum.clear();
      for (int64_t i = start; i < std::min(past, start + flush_steps); ++i) {
        step.load(gs.row(i), from, p.states);
        g.advance(decay, step);
        if (dx) g.store(out.row(i), from, p.states);
        if (i + 1 == p.time) continue;  // the first step of the recurrence has no predecessor
        previous.load(hs.row(i + 1), from, p.states);
        for (int64_t j = 0; j < group; ++j) sum.v[j] = sum.v[j] + g.v[j] * conj(previous.v[j]);
      }
      T part[2 * group * lane_count<T>];
      for (int64_t j = 0; j < group; ++j) {
        store_lanes(part + j * lane_count<T>, sum.v[j].re, lane_count<T>);
        store_lanes(part + (group + j) * lane_count<T>, sum.v[j].im, lane_count<T>);
      }
      for (int64_t n = 0; n < count; ++n) {
        mine[from + n] += static_cast<double>(part[n]);
        mine[p.states + from + n] += static_cast<double>(part[group * lane_count<T> + n]);
      }
    }
  });
}

}  // namespace

void diagonal_scan(Context& ctx, const Tensor& x, const Tensor& log_abs, const Tensor& arg, bool reverse,
                   Tensor& h) {
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda()) return diagonal_scan_cuda(ctx, x, log_abs, arg, reverse, h);
#endif
  require_cpu(ctx, "diagonal_scan");
  const Pieces p(x, x.dtype());
  const Tensor lambda = ctx.empty({2 * p.states}, x.dtype()), jump = ctx.empty({2 * p.states}, x.dtype());
  const Tensor carry = ctx.empty({p.batch, p.segments, 2 * p.states}, x.dtype());
  dispatch_floating(ctx, "diagonal_scan", x.dtype(), [&]<class T>() {
    const T *la = log_abs.data<T>(), *th = arg.data<T>();
    const Rows<T> xs = rows_of<T>(x, "diagonal_scan: x");
    powers(la, th, p.states, 1.0, 1.0, lambda.data<T>());
    powers(la, th, p.states, static_cast<double>(p.length), 1.0, jump.data<T>());
    carry_states(p, xs, reverse, lambda.data<T>(), jump.data<T>(), carry.data<T>());
    forward(p, xs, reverse, lambda.data<T>(), carry.data<T>(), rows_of<T>(h, "diagonal_scan: h"));
  });
}

void diagonal_scan_backward(Context& ctx, const Tensor& h, const Tensor& log_abs, const Tensor& arg,
                            bool reverse, const Tensor& dh, Tensor& dx, Tensor& dlog_abs, Tensor& darg) {
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda())
    return diagonal_scan_backward_cuda(ctx, h, log_abs, arg, reverse, dh, dx, dlog_abs, darg);
#endif
  require_cpu(ctx, "diagonal_scan_backward");
  const Pieces p(h, h.dtype());
  const Tensor lambda = ctx.empty({2 * p.states}, h.dtype()), jump = ctx.empty({2 * p.states}, h.dtype());
  const Tensor carry = ctx.empty({p.batch, p.segments, 2 * p.states}, h.dtype());
  const Tensor q = ctx.empty({p.batch, p.segments, 2 * p.states}, DType::f64);
  dispatch_floating(ctx, "diagonal_scan_backward", h.dtype(), [&]<class T>() {
    const T *la = log_abs.data<T>(), *th = arg.data<T>();
    const Rows<T> gs = rows_of<T>(dh, "diagonal_scan_backward: dh");
    Rows<T> out{};
    if (dx.defined()) out = rows_of<T>(dx, "diagonal_scan_backward: dx");
    powers(la, th, p.states, 1.0, -1.0, lambda.data<T>());
    powers(la, th, p.states, static_cast<double>(p.length), -1.0, jump.data<T>());
    carry_states(p, gs, !reverse, lambda.data<T>(), jump.data<T>(), carry.data<T>());
    backward(p, rows_of<T>(h, "diagonal_scan_backward: h"), gs, reverse, lambda.data<T>(), carry.data<T>(),
             dx.defined() ? &out : nullptr, q.data<double>());
    for (int64_t n = 0; n < p.states; ++n) {
      cplx<double> sum{0, 0};
      for (int64_t piece = 0; piece < p.batch * p.segments; ++piece) {
        sum.re += q.data<double>()[piece * 2 * p.states + n];
        sum.im += q.data<double>()[piece * 2 * p.states + p.states + n];
      }
      const double radius = exp(static_cast<double>(la[n])), angle = static_cast<double>(th[n]);
      const cplx<double> product = conj(sum) * cplx<double>{radius * cos(angle), radius * sin(angle)};
      if (dlog_abs.defined()) dlog_abs.data<T>()[n] = static_cast<T>(product.re);
      if (darg.defined()) darg.data<T>()[n] = static_cast<T>(-product.im);
    }
  });
}

}  // namespace eigentrace::kernels
