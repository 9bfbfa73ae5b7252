// Selective scan of Mamba-1 (S6, arXiv 2312.00752), per channel c of E and state s of S, A = −exp(A_log):
//
//   h_i[c,s] = a_i h_{i−1}[c,s] + δ_i[c] B_i[s] x_i[c],   a_i = exp(δ_i[c] A[c,s]),   y_i = Σ_s C_i[s]
//   h_i[c,s] + D x_i
//
// and backward, with g the gradient of h including all later steps, g_i = C_i dy_i + a_{i+1} g_{i+1}:
//
//   dC_i[s] = Σ_c dy_i h_i,   dB_i[s] = Σ_c g_i δ_i x_i,   dx_i = D dy_i + δ_i Σ_s g_i B_i,
//   dδ_i = Σ_s g_i (B_i x_i + A a_i h_{i−1}),   dA_log[c,s] = A Σ_i δ_i g_i a_i h_{i−1},   dD = Σ_i dy_i x_i
//
// Lanes run over channels. Only the state before each chunk of 64 steps is kept: the backward pass goes
// through the chunks from the last to the first and recomputes the states inside each.
#include <algorithm>
#include <cmath>
#include <vector>

#include "tensor/dispatch.h"
#include "tensor/kernels.h"
#include "tensor/lanes.h"
#include "tensor/math.h"
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/kernels/selective_scan_cuda.cuh"
#endif

namespace eigentrace::kernels {
namespace {

constexpr int64_t chunk = 64;
constexpr int64_t vectors = 4;  // lane vectors of channels whose dB and dC are summed before lanes are

struct Sizes {
  int64_t batch, time, channels, states, chunks, width, groups;
  Sizes(const Tensor& x, const Tensor& b) {
    batch = x.dim(0), time = x.dim(1), channels = x.dim(2), states = b.dim(2);
    chunks = (time + chunk - 1) / chunk;
    width = vectors * 64 / static_cast<int64_t>(size_of(x.dtype()));  // channels of a group
    groups = (channels + width - 1) / width;
  }
};

template <class T>
struct Operands {
  Rows<T> x, delta, b, c;
  const T* a;  // A transposed, [S,E]
  const T* d;  // [E]
};

/// A = −exp(A_log), transposed to [S,E]: lanes run over channels.
template <class T>
void negative_exp_transposed(const T* a_log, int64_t channels, int64_t states, T* a) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t s = 0; s < states; ++s)
      a[s * channels + c] = static_cast<T>(-exp(static_cast<double>(a_log[c * states + s])));
}

template <class T>
Lanes<T> exp_lanes(const Lanes<T>& x) {
  T in[lane_count<T>], out[lane_count<T>];
  std::memcpy(in, &x, 64);
#pragma omp simd
  for (int64_t l = 0; l < lane_count<T>; ++l) out[l] = fast_exp(in[l]);
  Lanes<T> y;
  std::memcpy(&y, out, 64);
  return y;
}

/// Advances h [S] through one step of `count` channels from `from`; decay [S] and before [S] (h before the
/// step) are written where asked. Returns Σ_s C h.
template <class T>
Lanes<T> step(const Operands<T>& o, const Sizes& n, int64_t row, int64_t from, int64_t count, Lanes<T>* h,
              Lanes<T>* decay, Lanes<T>* before) {
  const Lanes<T> delta = load_lanes(o.delta.data + row * o.delta.stride + from, count);
  const Lanes<T> input = delta * load_lanes(o.x.data + row * o.x.stride + from, count);
  const T *b = o.b.data + row * o.b.stride, *c = o.c.data + row * o.c.stride;
  Lanes<T> y{};
  for (int64_t s = 0; s < n.states; ++s) {
    const Lanes<T> a = exp_lanes<T>(delta * load_lanes(o.a + s * n.channels + from, count));
    if (before) decay[s] = a, before[s] = h[s];
    h[s] = a * h[s] + input * b[s];
    y += h[s] * c[s];
  }
  return y;
}

template <class T>
void forward(const Sizes& n, const Operands<T>& o, const Rows<T>& y, T* boundary) {
  constexpr int64_t lanes = lane_count<T>;
  const int64_t blocks = (n.channels + lanes - 1) / lanes;
  parallel_rows(n.batch * blocks, [&](int64_t item) {
    const int64_t b = item / blocks, from = item % blocks * lanes, count = std::min(lanes, n.channels - from);
    const LaneBuffer<Lanes<T>> h(n.states);
    for (int64_t s = 0; s < n.states; ++s) h[s] = Lanes<T>{};
    const Lanes<T> skip = load_lanes(o.d + from, count);
    for (int64_t t = 0; t < n.time; ++t) {
      if (boundary && t % chunk == 0)
        for (int64_t s = 0; s < n.states; ++s)
          store_lanes(boundary + ((b * n.chunks + t / chunk) * n.states + s) * n.channels + from, h[s],
                      count);
      const int64_t row = b * n.time + t;
      const Lanes<T> x = load_lanes(o.x.data + row * o.x.stride + from, count);
      const Lanes<T> sum = step<T>(o, n, row, from, count, h.data(), nullptr, nullptr);
      store_lanes(y.data + row * y.stride + from, sum + skip * x, count);
    }
  });
}

/// Where the backward pass writes; dx and ddelta may be without data (not wanted).
template <class T>
struct Gradients {
  Rows<T> dx, ddelta;
  T *db, *dc;       // [groups, B, T, S], partial sums over the channels of a group
  double *da, *dd;  // [B, S, E], [B, E]
};

/// Scratch of one thread: states and decays of a chunk, and the running gradients of a group of channels.
template <class T>
struct Scratch {
  LaneBuffer<Lanes<T>> decay, before, h, carry, sum_b, sum_c, sum_a;
  explicit Scratch(int64_t states)
      : decay(chunk * states),
        before(chunk * states),
        h(states),
        carry(vectors * states),
        sum_b(chunk * states),
        sum_c(chunk * states),
        sum_a(states) {}
};

template <class T>
void add_lanes(double* to, const Lanes<T>& v, int64_t count) {
  T part[lane_count<T>];
  std::memcpy(part, &v, 64);
  for (int64_t l = 0; l < count; ++l) to[l] += static_cast<double>(part[l]);
}

/// One chunk of `count` channels from `from`: states recomputed, then the steps backwards.
template <class T>
void backward_chunk(const Sizes& n, const Operands<T>& o, const Rows<T>& dy, const T* boundary,
                    const Gradients<T>& to, const Scratch<T>& w, int64_t b, int64_t c, int64_t from,
                    int64_t count, Lanes<T>* carry) {
  const int64_t first = c * chunk, steps = std::min(chunk, n.time - first);
  for (int64_t s = 0; s < n.states; ++s) {
    w.h[s] = load_lanes(boundary + ((b * n.chunks + c) * n.states + s) * n.channels + from, count);
    w.sum_a[s] = Lanes<T>{};
  }
  for (int64_t i = 0; i < steps; ++i)
    step<T>(o, n, b * n.time + first + i, from, count, w.h.data(), &w.decay[i * n.states],
            &w.before[i * n.states]);
  const Lanes<T> skip = load_lanes(o.d + from, count);
  Lanes<T> sum_d{};
  for (int64_t i = steps - 1; i >= 0; --i) {
    const int64_t row = b * n.time + first + i;
    const Lanes<T> x = load_lanes(o.x.data + row * o.x.stride + from, count);
    const Lanes<T> delta = load_lanes(o.delta.data + row * o.delta.stride + from, count);
    const Lanes<T> dout = load_lanes(dy.data + row * dy.stride + from, count);
    const T *bs = o.b.data + row * o.b.stride, *cs = o.c.data + row * o.c.stride;
    const Lanes<T> input = delta * x;
    Lanes<T> g_b{}, g_a{};  // Σ_s g B and Σ_s g A a h_{i−1}
    for (int64_t s = 0; s < n.states; ++s) {
      const int64_t at = i * n.states + s;
      const Lanes<T> g = carry[s] + dout * cs[s];
      const Lanes<T> decayed = w.decay[at] * w.before[at];
      w.sum_c[at] += dout * (decayed + input * bs[s]);
      w.sum_b[at] += g * input;
      g_b += g * bs[s];
      const Lanes<T> through = g * decayed;
      g_a += through * load_lanes(o.a + s * n.channels + from, count);
      w.sum_a[s] += through * delta;
      carry[s] = g * w.decay[at];
    }
    if (to.dx.data) store_lanes(to.dx.data + row * to.dx.stride + from, skip * dout + delta * g_b, count);
    if (to.ddelta.data) store_lanes(to.ddelta.data + row * to.ddelta.stride + from, x * g_b + g_a, count);
    sum_d += dout * x;
  }
  for (int64_t s = 0; s < n.states; ++s)
    add_lanes<T>(to.da + (b * n.states + s) * n.channels + from, w.sum_a[s], count);
  add_lanes<T>(to.dd + b * n.channels + from, sum_d, count);
}

template <class T>
void backward(const Sizes& n, const Operands<T>& o, const Rows<T>& dy, const T* boundary,
              const Gradients<T>& to) {
  std::fill(to.da, to.da + n.batch * n.states * n.channels, 0.0);
  std::fill(to.dd, to.dd + n.batch * n.channels, 0.0);
  parallel_rows(n.batch * n.groups, [&](int64_t item) {
    const int64_t b = item / n.groups, group = item % n.groups;
    const Scratch<T> w(n.states);
    for (int64_t i = 0; i < vectors * n.states; ++i) w.carry[i] = Lanes<T>{};
    for (int64_t c = n.chunks - 1; c >= 0; --c) {
      const int64_t first = c * chunk, steps = std::min(chunk, n.time - first);
      for (int64_t i = 0; i < steps * n.states; ++i) w.sum_b[i] = w.sum_c[i] = Lanes<T>{};
      for (int64_t v = 0; v < vectors; ++v) {
        const int64_t from = group * n.width + v * lane_count<T>;
        const int64_t count = std::min(lane_count<T>, n.channels - from);
        if (count > 0) backward_chunk(n, o, dy, boundary, to, w, b, c, from, count, &w.carry[v * n.states]);
      }
      const int64_t at = ((group * n.batch + b) * n.time + first) * n.states;
      for (int64_t i = 0; i < steps * n.states; ++i) {
        to.db[at + i] = sum_lanes<T>(w.sum_b[i]);
        to.dc[at + i] = sum_lanes<T>(w.sum_c[i]);
      }
    }
  });
}

/// Sum of the groups' partial sums, in their order.
template <class T>
void sum_groups(const Sizes& n, const T* partial, const Rows<T>& to) {
  parallel_rows(n.batch * n.time, [&](int64_t row) {
    for (int64_t s = 0; s < n.states; ++s) {
      T sum = 0;
      for (int64_t g = 0; g < n.groups; ++g) sum += partial[(g * n.batch * n.time + row) * n.states + s];
      to.data[row * to.stride + s] = sum;
    }
  });
}

template <class T>
Operands<T> operands(const SelectiveScan& in, const Tensor& a) {
  return {rows_of<T>(in.x, "selective_scan: x"),
          rows_of<T>(in.delta, "selective_scan: delta"),
          rows_of<T>(in.b, "selective_scan: B"),
          rows_of<T>(in.c, "selective_scan: C"),
          a.data<T>(),
          in.d.data<T>()};
}

}  // namespace

Shape selective_scan_boundary(const Tensor& x, const Tensor& b) {
#ifdef EIGENTRACE_WITH_CUDA
  if (x.device().is_cuda()) return selective_scan_boundary_cuda(x, b);
#endif
  const Sizes n(x, b);
  return {n.batch, n.chunks, n.states, n.channels};
}

void selective_scan(Context& ctx, const SelectiveScan& in, Tensor& y, Tensor& boundary) {
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda()) return selective_scan_cuda(ctx, in, y, boundary);
#endif
  require_cpu(ctx, "selective_scan");
  const Sizes n(in.x, in.b);
  const Tensor a = ctx.empty({n.states, n.channels}, in.x.dtype());
  dispatch_floating(ctx, "selective_scan", in.x.dtype(), [&]<class T>() {
    negative_exp_transposed(in.a_log.data<T>(), n.channels, n.states, a.data<T>());
    forward(n, operands<T>(in, a), rows_of<T>(y, "selective_scan: y"),
            boundary.defined() ? boundary.data<T>() : nullptr);
  });
}

void selective_scan_backward(Context& ctx, const SelectiveScan& in, const Tensor& boundary, const Tensor& dy,
                             SelectiveScan& gradient) {
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda()) return selective_scan_backward_cuda(ctx, in, boundary, dy, gradient);
#endif
  require_cpu(ctx, "selective_scan_backward");
  const Sizes n(in.x, in.b);
  const Tensor a = ctx.empty({n.states, n.channels}, in.x.dtype());
  const Tensor db = ctx.empty({n.groups, n.batch, n.time, n.states}, in.x.dtype()), dc = ctx.empty_like(db);
  const Tensor da = ctx.empty({n.batch, n.states, n.channels}, DType::f64);
  const Tensor dd = ctx.empty({n.batch, n.channels}, DType::f64);
  dispatch_floating(ctx, "selective_scan_backward", in.x.dtype(), [&]<class T>() {
    negative_exp_transposed(in.a_log.data<T>(), n.channels, n.states, a.data<T>());
    Gradients<T> to{{}, {}, db.data<T>(), dc.data<T>(), da.data<double>(), dd.data<double>()};
    if (gradient.x.defined()) to.dx = rows_of<T>(gradient.x, "selective_scan_backward: dx");
    if (gradient.delta.defined()) to.ddelta = rows_of<T>(gradient.delta, "selective_scan_backward: ddelta");
    backward(n, operands<T>(in, a), rows_of<T>(dy, "selective_scan_backward: dy"), boundary.data<T>(), to);
    if (gradient.b.defined()) sum_groups(n, to.db, rows_of<T>(gradient.b, "selective_scan_backward: dB"));
    if (gradient.c.defined()) sum_groups(n, to.dc, rows_of<T>(gradient.c, "selective_scan_backward: dC"));
    for (int64_t c = 0; c < n.channels; ++c) {
      double sum_d = 0;
      for (int64_t b = 0; b < n.batch; ++b) sum_d += to.dd[b * n.channels + c];
      if (gradient.d.defined()) gradient.d.data<T>()[c] = static_cast<T>(sum_d);
      if (!gradient.a_log.defined()) continue;
      for (int64_t s = 0; s < n.states; ++s) {
        double sum = 0;
        for (int64_t b = 0; b < n.batch; ++b) sum += to.da[(b * n.states + s) * n.channels + c];
        gradient.a_log.data<T>()[c * n.states + s] =
            static_cast<T>(sum * static_cast<double>(a.data<T>()[s * n.channels + c]));
      }
    }
  });
}

}  // namespace eigentrace::kernels
