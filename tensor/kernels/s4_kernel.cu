// Convolution kernel of S4 from its diagonal-plus-low-rank parameters (arXiv 2111.00396, section 3), per
// channel:
//
//   Ω_k = exp(−2πik/L), τ_k = tan(πk/L):  g = (2/Δ)(1−Ω)/(1+Ω) = (2/Δ) iτ,   c = 2/(1+Ω) = 1 + iτ
//   k_vw = Σ_n conj(v_n) w_n r_n,   r_n = 1/(g − Λ_n),   v ∈ {C, P}, w ∈ {B, P},   Re Λ clipped to ≤ −1e−4
//   K̂ = c (k_CB − k_CP k_PB/(1 + k_PP)),   at Ω = −1 (L even, c infinite) its limit (Δ/2) Σ conj(C_n) B_n
//   K = Re IFFT(K̂)                         (K̂ is not Hermitian, so all L nodes are needed)
//
// and backward: G = FFT(dK)/L is the gradient of K̂ (gradients of complex numbers are dRe + i dIm), from which
//
//   dW_vw,n = Σ_k conj(r) G_vw,   q = conj(r²) Σ_vw conj(W_vw,n) G_vw,   dΛ_n = Σ_k q,   dlog Δ = Σ_{n,k}
//   (2/Δ) τ Im q
//
// Everything is computed in double whatever the element type: g − Λ cancels near the resonances. Lanes run
// over nodes in the Cauchy sums (the cost: N·L·D terms) and over channels in the FFT.
#include <algorithm>
#include <cmath>
#include <vector>

#include "tensor/dispatch.h"
#include "tensor/fft.h"
#include "tensor/kernels.h"

namespace eigentrace::kernels {
constexpr double largest_real_part = -1e-4;
}
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/kernels/s4_kernel_cuda.cuh"
#endif

namespace eigentrace::kernels {
namespace {

constexpr int64_t lanes = lane_count<double>;

using V = DoubleLanes;
using Signal = LaneFft<double>::Signal;

/// The frequencies in the order of the FFT's spectra, as τ_k; 0 stands for the limit node and the padding.
struct Nodes {
  int64_t length, vectors, limit = -1;  // limit: place of Ω = −1
  std::vector<double> tau;
  explicit Nodes(const LaneFft<double>& fft)
      : length(fft.length()), vectors((fft.length() + lanes - 1) / lanes) {
    tau.assign(static_cast<size_t>(vectors * lanes), 0.0);
    for (int64_t p = 0; p < length; ++p) {
      const int64_t k = fft.frequency(p);
      if (2 * k == length) {
        limit = p;
        continue;
      }
      const cplx<double> half = fft::root<double>(k, 2 * length);  // exp(−iπk/L)
      tau[static_cast<size_t>(p)] = -half.im / half.re;
    }
  }
};

/// One channel's parameters in double.
struct Channel {
  int64_t states;
  double step;
  std::vector<double> real, imag;              // Λ, clipped
  std::vector<cplx<double>> p, b, c;           // [N]
  std::vector<cplx<double>> w_cb, w_cp, w_pb;  // conj(v) w
  std::vector<double> w_pp;
  std::vector<bool> clipped;

  template <class T>
  Channel(const S4Parameters& in, int64_t d, T /*element type*/) {
    states = in.lambda_re.dim(0);
    const int64_t channels = in.lambda_re.dim(1);
    step = exp(static_cast<double>(in.log_step.data<T>()[d]));
    const auto pair = [&](const Tensor& t, int64_t n) {
      const T* at = t.data<T>() + (n * channels + d) * 2;
      return cplx<double>{static_cast<double>(at[0]), static_cast<double>(at[1])};
    };
    for (int64_t n = 0; n < states; ++n) {
      const double re = static_cast<double>(in.lambda_re.data<T>()[n * channels + d]);
      clipped.push_back(re > largest_real_part);
      real.push_back(std::min(re, largest_real_part));
      imag.push_back(static_cast<double>(in.lambda_im.data<T>()[n * channels + d]));
      p.push_back(pair(in.p, n)), b.push_back(pair(in.b, n)), c.push_back(pair(in.c, n));
      w_cb.push_back(conj(c.back()) * b.back());
      w_cp.push_back(conj(c.back()) * p.back());
      w_pb.push_back(conj(p.back()) * b.back());
      w_pp.push_back(norm(p.back()));
    }
  }
};

V broadcast(double x) { return zero_lanes<V>() + x; }

/// r = 1/(g − Λ_n) at the nodes g = i·g_im
cplx<V> resolvent(const Channel& ch, size_t n, const V& g_im) {
  const V re = broadcast(-ch.real[n]), im = g_im - ch.imag[n];
  const V scale = 1.0 / (re * re + im * im);
  return {re * scale, -(im * scale)};
}

struct CauchySums {
  cplx<V> cb, cp, pb, pp;
};

// Sums of products, one fused multiply-add a statement.
void add_product(cplx<V>& sum, const cplx<V>& r, const cplx<double>& w) {
  sum.re += r.re * w.re;
  sum.re -= r.im * w.im;
  sum.im += r.re * w.im;
  sum.im += r.im * w.re;
}
/// sum + conj(w) g
void add_conj_product(cplx<V>& sum, const cplx<double>& w, const cplx<V>& g) {
  sum.re += g.re * w.re;
  sum.re += g.im * w.im;
  sum.im += g.im * w.re;
  sum.im -= g.re * w.im;
}
/// sum + conj(r) g
void add_conj_product(cplx<V>& sum, const cplx<V>& r, const cplx<V>& g) {
  sum.re += r.re * g.re;
  sum.re += r.im * g.im;
  sum.im += r.re * g.im;
  sum.im -= r.im * g.re;
}

CauchySums cauchy_sums(const Channel& ch, const V& g_im) {
  const cplx<V> zero = complex_zero<V>();
  CauchySums s{zero, zero, zero, zero};
  for (size_t n = 0; n < static_cast<size_t>(ch.states); ++n) {
    const cplx<V> r = resolvent(ch, n, g_im);
    add_product(s.cb, r, ch.w_cb[n]);
    add_product(s.cp, r, ch.w_cp[n]);
    add_product(s.pb, r, ch.w_pb[n]);
    s.pp.re += r.re * ch.w_pp[n];
    s.pp.im += r.im * ch.w_pp[n];
  }
  return s;
}

cplx<V> one_over(const cplx<V>& a) {
  const V scale = 1.0 / (a.re * a.re + a.im * a.im);
  return {a.re * scale, -(a.im * scale)};
}

V tau_lanes(const Nodes& nodes, int64_t vector) {
  return load_lanes(nodes.tau.data() + vector * lanes, lanes);
}

/// (Δ/2) Σ conj(C) B
cplx<double> limit_value(const Channel& ch) {
  cplx<double> sum{0, 0};
  for (const cplx<double>& w : ch.w_cb) sum = sum + w;
  return (ch.step / 2) * sum;
}

/// K̂ of one channel into lane `lane` of the spectrum.
void spectrum_of(const Channel& ch, const Nodes& nodes, Signal* spectrum, int64_t lane) {
  for (int64_t v = 0; v < nodes.vectors; ++v) {
    const V tau = tau_lanes(nodes, v);
    const CauchySums s = cauchy_sums(ch, tau * (2 / ch.step));
    const cplx<V> inner = s.cb - s.cp * s.pb * one_over({1.0 + s.pp.re, s.pp.im});
    const cplx<V> value = cplx<V>{broadcast(1.0), tau} * inner;
    for (int64_t l = 0; l < std::min(lanes, nodes.length - v * lanes); ++l) {
      spectrum[v * lanes + l].re[lane] = value.re[l];
      spectrum[v * lanes + l].im[lane] = value.im[l];
    }
  }
  if (nodes.limit < 0) return;
  const cplx<double> value = limit_value(ch);
  spectrum[nodes.limit].re[lane] = value.re;
  spectrum[nodes.limit].im[lane] = value.im;
}

/// Gradients of the four Cauchy sums at every node, from the gradient of K̂ in lane `lane` of the spectrum.
void sum_gradients(const Channel& ch, const Nodes& nodes, const Signal* spectrum, int64_t lane,
                   CauchySums* to) {
  for (int64_t v = 0; v < nodes.vectors; ++v) {
    const V tau = tau_lanes(nodes, v);
    const CauchySums s = cauchy_sums(ch, tau * (2 / ch.step));
    cplx<V> g = complex_zero<V>();
    for (int64_t l = 0; l < std::min(lanes, nodes.length - v * lanes); ++l) {
      if (v * lanes + l == nodes.limit) continue;
      g.re[l] = spectrum[v * lanes + l].re[lane];
      g.im[l] = spectrum[v * lanes + l].im[lane];
    }
    const cplx<V> inverse = one_over({1.0 + s.pp.re, s.pp.im});
    const cplx<V> zero = complex_zero<V>();
    to[v].cb = conj(cplx<V>{broadcast(1.0), tau}) * g;
    const cplx<V> through = zero - conj(inverse) * to[v].cb;
    to[v].cp = conj(s.pb) * through;
    to[v].pb = conj(s.cp) * through;
    to[v].pp = zero - conj(s.cp * s.pb * inverse) * through;
  }
}

/// Σ over lanes of a complex accumulator.
cplx<double> total(const cplx<V>& a) { return {sum_lanes<double>(a.re), sum_lanes<double>(a.im)}; }

struct StateGradient {
  cplx<double> lambda, cb, cp, pb;
  double pp, step;
};

StateGradient state_gradient(const Channel& ch, size_t n, const Nodes& nodes, const CauchySums* g) {
  const cplx<V> zero = complex_zero<V>();
  cplx<V> lambda = zero, cb = zero, cp = zero, pb = zero;
  V pp = zero_lanes<V>(), step = zero_lanes<V>();
  for (int64_t v = 0; v < nodes.vectors; ++v) {
    const V g_im = tau_lanes(nodes, v) * (2 / ch.step);
    const cplx<V> r = resolvent(ch, n, g_im);
    add_conj_product(cb, r, g[v].cb);
    add_conj_product(cp, r, g[v].cp);
    add_conj_product(pb, r, g[v].pb);
    pp += r.re * g[v].pp.re;
    pp += r.im * g[v].pp.im;
    cplx<V> dr{g[v].pp.re * ch.w_pp[n], g[v].pp.im * ch.w_pp[n]};
    add_conj_product(dr, ch.w_cb[n], g[v].cb);
    add_conj_product(dr, ch.w_cp[n], g[v].cp);
    add_conj_product(dr, ch.w_pb[n], g[v].pb);
    cplx<V> q = complex_zero<V>();
    add_conj_product(q, r * r, dr);
    lambda = lambda + q;
    step += g_im * q.im;
  }
  return {total(lambda), total(cb), total(cp), total(pb), sum_lanes<double>(pp), sum_lanes<double>(step)};
}

/// Writes the gradients of one channel.
template <class T>
void channel_gradient(const Channel& ch, const Nodes& nodes, const CauchySums* g, cplx<double> at_limit,
                      int64_t d, S4Parameters& out) {
  const int64_t channels = out.lambda_re.dim(1);
  const auto put = [&](Tensor& t, int64_t n, const cplx<double>& value) {
    T* at = t.data<T>() + (n * channels + d) * 2;
    at[0] = static_cast<T>(value.re), at[1] = static_cast<T>(value.im);
  };
  double step = real_dot(at_limit, limit_value(ch));
  for (int64_t n = 0; n < ch.states; ++n) {
    const size_t i = static_cast<size_t>(n);
    StateGradient s = state_gradient(ch, i, nodes, g);
    s.cb = s.cb + (ch.step / 2) * at_limit;
    step += s.step;
    out.lambda_re.data<T>()[n * channels + d] = ch.clipped[i] ? T(0) : static_cast<T>(s.lambda.re);
    out.lambda_im.data<T>()[n * channels + d] = static_cast<T>(s.lambda.im);
    // of conj(v) w: the gradient of w is v G, that of v is conj(G) w
    put(out.c, n, conj(s.cb) * ch.b[i] + conj(s.cp) * ch.p[i]);
    put(out.b, n, ch.c[i] * s.cb + ch.p[i] * s.pb);
    put(out.p, n, ch.c[i] * s.cp + conj(s.pb) * ch.b[i] + (2 * s.pp) * ch.p[i]);
  }
  out.log_step.data<T>()[d] = static_cast<T>(step);
}

}  // namespace

Tensor s4_kernel_kept(Context& ctx, const S4Parameters& in, int64_t length) {
  return ctx.device().is_cuda() ? ctx.empty({in.lambda_re.dim(1), length, 8}, DType::f64) : Tensor();
}

void s4_kernel(Context& ctx, const S4Parameters& in, Tensor& k, [[maybe_unused]] const Tensor& kept) {
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda()) return s4_kernel_cuda(ctx, in, k, kept);
#endif
  require_cpu(ctx, "s4_kernel");
  dispatch_floating(ctx, "s4_kernel", k.dtype(), [&]<class T>() {
    const int64_t channels = k.dim(0), length = k.dim(1);
    const auto fft = LaneFft<double>::plan(length);
    const Nodes nodes(*fft);
    parallel_rows((channels + lanes - 1) / lanes, [&](int64_t block) {
      const LaneBuffer<Signal> spectrum(length);
      for (int64_t p = 0; p < length; ++p) spectrum[p] = complex_zero<V>();
      const int64_t count = std::min(lanes, channels - block * lanes);
      for (int64_t l = 0; l < count; ++l)
        spectrum_of(Channel(in, block * lanes + l, T{}), nodes, spectrum.data(), l);
      fft->inverse(spectrum.data());
      for (int64_t l = 0; l < count; ++l)
        for (int64_t t = 0; t < length; ++t)
          k.data<T>()[(block * lanes + l) * length + t] =
              static_cast<T>(spectrum[t].re[l] / static_cast<double>(length));
    });
  });
}

void s4_kernel_backward(Context& ctx, const S4Parameters& in, const Tensor& dk, S4Parameters& gradient,
                        [[maybe_unused]] const Tensor& kept) {
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda()) return s4_kernel_backward_cuda(ctx, in, dk, gradient, kept);
#endif
  require_cpu(ctx, "s4_kernel_backward");
  dispatch_floating(ctx, "s4_kernel_backward", dk.dtype(), [&]<class T>() {
    const int64_t channels = dk.dim(0), length = dk.dim(1);
    const Rows<T> rows = rows_of<T>(dk, "s4_kernel_backward: dK");
    const auto fft = LaneFft<double>::plan(length);
    const Nodes nodes(*fft);
    parallel_rows((channels + lanes - 1) / lanes, [&](int64_t block) {
      const LaneBuffer<Signal> spectrum(length);
      const LaneBuffer<CauchySums> sums(nodes.vectors);
      const int64_t count = std::min(lanes, channels - block * lanes);
      for (int64_t t = 0; t < length; ++t) {
        spectrum[t] = complex_zero<V>();
        for (int64_t l = 0; l < count; ++l)
          spectrum[t].re[l] = static_cast<double>(rows.data[(block * lanes + l) * rows.stride + t]) /
                              static_cast<double>(length);
      }
      fft->forward(spectrum.data());
      for (int64_t l = 0; l < count; ++l) {
        const Channel channel(in, block * lanes + l, T{});
        sum_gradients(channel, nodes, spectrum.data(), l, sums.data());
        cplx<double> at_limit{0, 0};
        if (nodes.limit >= 0) at_limit = {spectrum[nodes.limit].re[l], spectrum[nodes.limit].im[l]};
        channel_gradient<T>(channel, nodes, sums.data(), at_limit, block * lanes + l, gradient);
      }
    });
  });
}

}  // namespace eigentrace::kernels
