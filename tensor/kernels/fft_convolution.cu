// Causal convolution with a kernel as long as the sequence (S4, arXiv 2111.00396), per channel d:
//
//   y_t = Σ_{j≤t} K_j u_{t−j} + D u_t
//   du_t = Σ_j K_j dy_{t+j} + D dy_t,   dK_j = Σ_{b,t} dy_{t+j} u_t,   dD = Σ_{b,t} dy_t u_t
//
// by FFT of length M ≥ T + L − 1. K is real, so two sequences b, b' of one channel travel as one complex
// signal z = u_b + i u_b' and come back as y_b + i y_b'; likewise dK = Σ Re IFFT(conj(Z) V) over pairs, with
// V the transform of dy_b + i dy_b'. Lanes run over channels. A result of float32 has error below
// 8·eps·log₂(2T)·‖K‖₁·max|u|, the maximum over the pair: rounding is the only non-causal thing about it.
#include <algorithm>

#include "tensor/dispatch.h"
#include "tensor/fft.h"
#include "tensor/float32_copies.h"
#include "tensor/kernels.h"
#include "tensor/kernels/fft_convolution_add.h"
#ifdef EIGENTRACE_WITH_CUDA
#include "tensor/kernels/fft_convolution_cuda.cuh"
#endif

namespace eigentrace::kernels {
namespace {

constexpr int64_t pairs_of_group = 8;  // pairs of sequences whose dK an item sums

struct Sizes {
  int64_t batch, time, channels, taps, kept, length, lanes, blocks, pairs, groups;
  Sizes(const Tensor& u, const Tensor& k) {
    batch = u.dim(0), time = u.dim(1), channels = u.dim(2), taps = k.dim(1);
    kept = std::min(taps, time);  // taps beyond the sequence meet nothing
    length = LaneFft<float>::fast_length(time + kept - 1);
    lanes = 64 / static_cast<int64_t>(size_of(u.dtype()));
    blocks = (channels + lanes - 1) / lanes;
    pairs = (batch + 1) / 2;
    groups = (pairs + pairs_of_group - 1) / pairs_of_group;
  }
  int64_t count(int64_t block) const { return std::min(lanes, channels - block * lanes); }
  /// Elements of one spectrum of all channels.
  int64_t spectrum() const { return blocks * length * 2 * lanes; }
};

template <class T>
using Signal = typename LaneFft<T>::Signal;

/// Spectrum of the kernel over M, so that no other scaling is needed; all blocks of channels.
template <class T>
void kernel_spectrum(const Sizes& n, const LaneFft<T>& fft, const T* k, Signal<T>* spectrum) {
  const T scale = static_cast<T>(1.0 / static_cast<double>(n.length));
  parallel_rows(n.blocks, [&](int64_t block) {
    Signal<T>* s = spectrum + block * n.length;
    for (int64_t t = 0; t < n.length; ++t) {
      T taps[lane_count<T>] = {};
      if (t < n.kept)
        for (int64_t l = 0; l < n.count(block); ++l) taps[l] = scale * k[(block * n.lanes + l) * n.taps + t];
      s[t].re = load_lanes(taps, n.lanes);
      s[t].im = zero_lanes<Lanes<T>>();
    }
    fft.forward(s);
  });
}

/// Sequences 2·pair and 2·pair + 1 of a block of channels as one complex signal, padded with zeros.
template <class T>
void load_pair(const Sizes& n, const Rows<T>& x, int64_t pair, int64_t block, Signal<T>* z) {
  const int64_t count = n.count(block);
  const T* first = x.data + 2 * pair * n.time * x.stride + block * n.lanes;
  const bool both = 2 * pair + 1 < n.batch;
  for (int64_t t = 0; t < n.time; ++t) {
    z[t].re = load_lanes(first + t * x.stride, count);
    z[t].im = both ? load_lanes(first + (n.time + t) * x.stride, count) : zero_lanes<Lanes<T>>();
  }
  for (int64_t t = n.time; t < n.length; ++t) z[t] = complex_zero<Lanes<T>>();
}

/// y = z + skip ∘ u, both sequences of the pair.
template <class T>
void store_pair(const Sizes& n, const Signal<T>* z, const Rows<T>& u, const T* skip, int64_t pair,
                int64_t block, const Rows<T>& y) {
  const int64_t count = n.count(block);
  const Lanes<T> d = skip ? load_lanes(skip + block * n.lanes, count) : zero_lanes<Lanes<T>>();
  for (int64_t t = 0; t < n.time; ++t) {
    const int64_t row = 2 * pair * n.time + t, column = block * n.lanes;
    const Lanes<T> first = load_lanes(u.data + row * u.stride + column, count);
    store_lanes(y.data + row * y.stride + column, z[t].re + d * first, count);
    if (2 * pair + 1 == n.batch) continue;
    const Lanes<T> second = load_lanes(u.data + (row + n.time) * u.stride + column, count);
    store_lanes(y.data + (row + n.time) * y.stride + column, z[t].im + d * second, count);
  }
}

/// Σ_{b,t} dy u of the sequences of a pair, in double.
template <class T>
void add_products(const Sizes& n, const Rows<T>& u, const Rows<T>& dy, int64_t pair, int64_t block,
                  double* sum) {
  for (int64_t b = 2 * pair; b < std::min(n.batch, 2 * pair + 2); ++b)
    for (int64_t t = b * n.time; t < (b + 1) * n.time; ++t) {
      const T *a = u.data + t * u.stride + block * n.lanes, *g = dy.data + t * dy.stride + block * n.lanes;
      for (int64_t l = 0; l < n.count(block); ++l)
        sum[l] += static_cast<double>(a[l]) * static_cast<double>(g[l]);
    }
}

template <class T>
void forward(const Sizes& n, const LaneFft<T>& fft, const Rows<T>& u, const Signal<T>* kernel, const T* skip,
             const Rows<T>& y) {
  parallel_rows(n.blocks * n.pairs, [&](int64_t item) {
    const int64_t block = item / n.pairs, pair = item % n.pairs;
    const LaneBuffer<Signal<T>> z(n.length);
    load_pair(n, u, pair, block, z.data());
    fft.forward(z.data());
    const Signal<T>* k = kernel + block * n.length;
    for (int64_t p = 0; p < n.length; ++p) z[p] = z[p] * k[p];
    fft.inverse(z.data());
    store_pair(n, z.data(), u, skip, pair, block, y);
  });
}

/// du, and for each group of pairs the spectrum Σ conj(Z) V [groups, blocks, M] and Σ dy u [groups, C].
template <class T>
void backward(const Sizes& n, const LaneFft<T>& fft, const Rows<T>& u, const Rows<T>& dy,
              const Signal<T>* kernel, const T* skip, const Rows<T>* du, Signal<T>* sums, double* products) {
  parallel_rows(n.groups * n.blocks, [&](int64_t item) {
    const int64_t group = item / n.blocks, block = item % n.blocks;
    const LaneBuffer<Signal<T>> z(n.length), v(n.length);
    Signal<T>* sum = sums + item * n.length;
    for (int64_t p = 0; p < n.length; ++p) sum[p] = complex_zero<Lanes<T>>();
    double* product = products + group * n.channels + block * n.lanes;
    std::fill(product, product + n.count(block), 0.0);
    const Signal<T>* k = kernel + block * n.length;
    for (int64_t pair = group * pairs_of_group; pair < std::min(n.pairs, (group + 1) * pairs_of_group);
         ++pair) {
      load_pair(n, u, pair, block, z.data());
      load_pair(n, dy, pair, block, v.data());
      fft.forward(z.data());
      fft.forward(v.data());
      for (int64_t p = 0; p < n.length; ++p) {
        sum[p] = sum[p] + conj(z[p]) * v[p];
        v[p] = conj(k[p]) * v[p];
      }
      if (du) {
        fft.inverse(v.data());
        store_pair(n, v.data(), dy, skip, pair, block, *du);
      }
      add_products(n, u, dy, pair, block, product);
    }
  });
}

/// dK [C,L]: the groups' spectra added in their order, then back to time; 0 beyond the sequence.
template <class T>
void kernel_gradient(const Sizes& n, const LaneFft<T>& fft, Signal<T>* sums, T* dk) {
  const T scale = static_cast<T>(1.0 / static_cast<double>(n.length));
  parallel_rows(n.blocks, [&](int64_t block) {
    Signal<T>* sum = sums + block * n.length;
    for (int64_t group = 1; group < n.groups; ++group)
      for (int64_t p = 0; p < n.length; ++p)
        sum[p] = sum[p] + sums[(group * n.blocks + block) * n.length + p];
    fft.inverse(sum);
    for (int64_t l = 0; l < n.count(block); ++l) {
      T* row = dk + (block * n.lanes + l) * n.taps;
      for (int64_t t = 0; t < n.taps; ++t) row[t] = t < n.kept ? scale * sum[t].re[l] : T(0);
    }
  });
}

template <class T>
Signal<T>* signals(const Tensor& memory) {
  return reinterpret_cast<Signal<T>*>(memory.data<T>());
}

}  // namespace

Tensor fft_convolution_kept([[maybe_unused]] Context& ctx, [[maybe_unused]] const Tensor& u,
                            [[maybe_unused]] const Tensor& k) {
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda()) return fast_spectrum_memory(ctx, u, k);
#endif
  return {};
}

void fft_convolution(Context& ctx, const Tensor& u, const Tensor& k, const Tensor& d, Tensor& y,
                     [[maybe_unused]] const Tensor& kept) {
  if (in_float32(ctx, fft_convolution, u, k, d, y, kept)) return;
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda()) return fft_convolution_cuda(ctx, u, k, d, y, kept);
#endif
  require_cpu(ctx, "fft_convolution");
  const Sizes n(u, k);
  const Tensor spectrum = ctx.empty({n.spectrum()}, u.dtype());
  dispatch_floating(ctx, "fft_convolution", u.dtype(), [&]<class T>() {
    const auto fft = LaneFft<T>::plan(n.length);
    kernel_spectrum(n, *fft, k.data<T>(), signals<T>(spectrum));
    forward(n, *fft, rows_of<T>(u, "fft_convolution: u"), signals<T>(spectrum),
            d.defined() ? d.data<T>() : nullptr, rows_of<T>(y, "fft_convolution: y"));
  });
}

void fft_convolution_backward(Context& ctx, const Tensor& u, const Tensor& k, const Tensor& d,
                              const Tensor& dy, Tensor& du, Tensor& dk, Tensor& dd,
                              [[maybe_unused]] const Tensor& kept) {
  if (in_float32(ctx, fft_convolution_backward, u, k, d, dy, du, dk, dd, kept)) return;
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda()) return fft_convolution_backward_cuda(ctx, u, k, d, dy, du, dk, dd, kept);
#endif
  require_cpu(ctx, "fft_convolution_backward");
  const Sizes n(u, k);
  const Tensor spectrum = ctx.empty({n.spectrum()}, u.dtype());
  const Tensor sums = ctx.empty({n.groups * n.spectrum()}, u.dtype());
  const Tensor products = ctx.empty({n.groups, n.channels}, DType::f64);
  dispatch_floating(ctx, "fft_convolution_backward", u.dtype(), [&]<class T>() {
    const auto fft = LaneFft<T>::plan(n.length);
    kernel_spectrum(n, *fft, k.data<T>(), signals<T>(spectrum));
    Rows<T> to{};
    if (du.defined()) to = rows_of<T>(du, "fft_convolution_backward: du");
    backward(n, *fft, rows_of<T>(u, "fft_convolution_backward: u"),
             rows_of<T>(dy, "fft_convolution_backward: dy"), signals<T>(spectrum),
             d.defined() ? d.data<T>() : nullptr, du.defined() ? &to : nullptr, signals<T>(sums),
             products.data<double>());
    if (dk.defined()) kernel_gradient(n, *fft, signals<T>(sums), dk.data<T>());
    if (dd.defined())
      for (int64_t c = 0; c < n.channels; ++c) {
        double sum = 0;
        for (int64_t g = 0; g < n.groups; ++g) sum += products.data<double>()[g * n.channels + c];
        dd.data<T>()[c] = static_cast<T>(sum);
      }
  });
}

void fft_convolution_backward_add(Context& ctx, const Tensor& u, const Tensor& k, const Tensor& d,
                                  const Tensor& dy, const Tensor& sent, Tensor& du, Tensor& dk, Tensor& dd,
                                  const Tensor& kept) {
  if (!sent.defined() || !du.defined()) return fft_convolution_backward(ctx, u, k, d, dy, du, dk, dd, kept);
#ifdef EIGENTRACE_WITH_CUDA
  if (ctx.device().is_cuda() && u.dtype() == DType::f32)
    if (const TilePlan plan(ctx, u); plan.fits)
      return tile_convolution_backward(ctx, plan, u, k, d, dy, sent, du, dk, dd, kept);
#endif
  Tensor own = ctx.empty(du.shape(), du.dtype());  // du may be `sent`
  fft_convolution_backward(ctx, u, k, d, dy, own, dk, dd, kept);
  binary(ctx, Binary::add, sent, own, du);
}

}  // namespace eigentrace::kernels
