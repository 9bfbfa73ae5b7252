#pragma once
// Fast Fourier transform of many signals side by side on the CPU (for kernels/*.cu).
//
// X_k = Σ_t x_t exp(−2πi kt/n), one signal per lane. Channels are the dense axis of our tensors, so 64 bytes
// of them are transformed at once with no transposition, and every butterfly is full-width arithmetic.
// Decimation in frequency forward, in time backward, both in place and depth first (a sub-transform stays in
// cache): the spectrum lies in the order `frequency`, which products of spectra need not know.
#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "tensor/cplx.h"
#include "tensor/lanes.h"

namespace eigentrace {

template <class T>
class LaneFft {
 public:
  using Signal = cplx<Lanes<T>>;  ///< one time step or one frequency of all lanes

  /// Any n ≥ 1; fast where n has no prime factor above 5, else O(n · largest factor).
  explicit LaneFft(int64_t n);
  /// The plan of length n, made once per process.
  static std::shared_ptr<const LaneFft> plan(int64_t n);
  /// The smallest length ≥ n whose prime factors are 2, 3 and 5.
  static int64_t fast_length(int64_t n);

  int64_t length() const { return n_; }
  /// Which frequency k lies at place p of a spectrum.
  int64_t frequency(int64_t p) const { return frequency_[static_cast<size_t>(p)]; }
  void forward(Signal* x) const { forward(x, 0, n_); }  ///< time → spectrum
  void inverse(Signal* x) const { inverse(x, 0, n_); }  ///< spectrum → n · time

 private:
  struct Stage {
    int64_t radix;
    std::vector<cplx<T>> twiddles;  // [size/radix][radix − 1]: exp(−2πi jq/size), j = 0.., q = 1..
    std::vector<cplx<T>> roots;     // exp(−2πi q/radix), for radices without a butterfly of their own
  };
  void forward(Signal* x, size_t level, int64_t size) const;
  void inverse(Signal* x, size_t level, int64_t size) const;
  template <bool inverted>
  void butterfly(const Stage& stage, Signal* x, int64_t m, Signal* scratch) const;

  int64_t n_;
  std::vector<Stage> stages_;
  std::vector<int64_t> frequency_;
};

namespace fft {

/// exp(−2πi k/n), each part correctly rounded but for the last bit: the angle is reduced exactly first.
template <class T>
cplx<T> root(int64_t k, int64_t n) {
  k %= n;
  const int64_t eighth = 8 * k / n;  // the angle is in octant `eighth`
  const double pi = 3.14159265358979323846;
  // distance to the nearest multiple of a quarter turn, as a fraction of integers
  const int64_t quarter = (eighth + 1) / 2;
  const double angle = 2 * pi * (static_cast<double>(4 * k - quarter * n) / (4.0 * static_cast<double>(n)));
  const double c = std::cos(angle), s = std::sin(angle);
  switch (quarter % 4) {
    case 0:
      return {static_cast<T>(c), static_cast<T>(-s)};
    case 1:
      return {static_cast<T>(-s), static_cast<T>(-c)};
    case 2:
      return {static_cast<T>(-c), static_cast<T>(s)};
    default:
      return {static_cast<T>(s), static_cast<T>(c)};
  }
}

/// x · w with a scalar w, conjugated on the way back.
template <bool inverted, class V, class T>
inline cplx<V> turn(const cplx<V>& x, const cplx<T>& w) {
  if constexpr (inverted) return {x.re * w.re + x.im * w.im, x.im * w.re - x.re * w.im};
  return {x.re * w.re - x.im * w.im, x.re * w.im + x.im * w.re};
}
/// x · (−i) forward, x · i backward
template <bool inverted, class V>
inline cplx<V> quarter_turn(const cplx<V>& x) {
  if constexpr (inverted) return {-x.im, x.re};
  return {x.im, -x.re};
}

}  // namespace fft

template <class T>
int64_t LaneFft<T>::fast_length(int64_t n) {
  for (int64_t candidate = n;; ++candidate) {
    int64_t rest = candidate;
    for (int64_t p : {2, 3, 5})
      while (rest % p == 0) rest /= p;
    if (rest == 1) return candidate;
  }
}

template <class T>
LaneFft<T>::LaneFft(int64_t n) : n_(n) {
  frequency_.assign(static_cast<size_t>(n), 0);
  int64_t size = n, done = 1;
  while (size > 1) {
    int64_t radix = size;
    for (int64_t p : {4, 2, 3, 5})
      if (size % p == 0) {
        radix = p;
        break;
      }
    for (int64_t p = 7; radix == size && p * p <= size; p += 2)
      if (size % p == 0) radix = p;
    Stage stage{radix, {}, {}};
    const int64_t m = size / radix;
    for (int64_t j = 0; j < m; ++j)
      for (int64_t q = 1; q < radix; ++q) stage.twiddles.push_back(fft::root<T>(j * q, size));
    for (int64_t q = 0; q < radix; ++q) stage.roots.push_back(fft::root<T>(q, radix));
    stages_.push_back(std::move(stage));
    // part q of each block holds the frequencies ≡ q (mod radix) of that block
    for (int64_t p = 0; p < n; ++p) frequency_[static_cast<size_t>(p)] += p % size / m * done;
    done *= radix;
    size = m;
  }
}

template <class T>
std::shared_ptr<const LaneFft<T>> LaneFft<T>::plan(int64_t n) {
  static std::mutex mutex;
  static std::map<int64_t, std::shared_ptr<const LaneFft>> plans;
  const std::lock_guard lock(mutex);
  auto& plan = plans[n];
  if (!plan) plan = std::make_shared<const LaneFft>(n);
  return plan;
}

/// One stage over one block: the radix-point transforms of (x_j, x_{j+m}, …), with the twiddles after them
/// forward and before them backward.
template <class T>
template <bool inverted>
void LaneFft<T>::butterfly(const Stage& stage, Signal* x, int64_t m, Signal* scratch) const {
  const cplx<T>* w = stage.twiddles.data();
  const auto in = [&](int64_t j, int64_t q) {
    if constexpr (inverted) return q == 0 ? x[j] : fft::turn<true>(x[j + q * m], w[q - 1]);
    return x[j + q * m];
  };
  const auto out = [&](int64_t j, int64_t q, const Signal& y) {
    if constexpr (inverted)
      x[j + q * m] = y;
    else
      x[j + q * m] = q == 0 ? y : fft::turn<false>(y, w[q - 1]);
  };
  switch (stage.radix) {
    case 2:
      for (int64_t j = 0; j < m; ++j, w += 1) {
        const Signal a = in(j, 0), b = in(j, 1);
        out(j, 0, a + b);
        out(j, 1, a - b);
      }
      return;
    case 3: {
      const T half = T(0.5), s = T(0.86602540378443864676);
      for (int64_t j = 0; j < m; ++j, w += 2) {
        const Signal a = in(j, 0), b = in(j, 1), c = in(j, 2);
        const Signal sum = b + c, d = b - c;
        const Signal mid = {a.re - half * sum.re, a.im - half * sum.im};
        const Signal side = fft::quarter_turn<inverted>(Signal{s * d.re, s * d.im});
        out(j, 0, a + sum);
        out(j, 1, mid + side);
        out(j, 2, mid - side);
      }
      return;
    }
    case 4:
      for (int64_t j = 0; j < m; ++j, w += 3) {
        const Signal a = in(j, 0), b = in(j, 1), c = in(j, 2), d = in(j, 3);
        const Signal ac = a + c, bd = b + d, a_c = a - c, b_d = fft::quarter_turn<inverted>(b - d);
        out(j, 0, ac + bd);
        out(j, 1, a_c + b_d);
        out(j, 2, ac - bd);
        out(j, 3, a_c - b_d);
      }
      return;
    case 5: {
      const T c1 = T(0.30901699437494742410), c2 = T(-0.80901699437494742410);
      const T s1 = T(0.95105651629515357212), s2 = T(0.58778525229247312917);
      for (int64_t j = 0; j < m; ++j, w += 4) {
        const Signal a = in(j, 0), b = in(j, 1), c = in(j, 2), d = in(j, 3), e = in(j, 4);
        const Signal be = b + e, b_e = b - e, cd = c + d, c_d = c - d;
        const Signal p = {a.re + c1 * be.re + c2 * cd.re, a.im + c1 * be.im + c2 * cd.im};
        const Signal q = {a.re + c2 * be.re + c1 * cd.re, a.im + c2 * be.im + c1 * cd.im};
        const Signal r =
            fft::quarter_turn<inverted>(Signal{s1 * b_e.re + s2 * c_d.re, s1 * b_e.im + s2 * c_d.im});
        const Signal t =
            fft::quarter_turn<inverted>(Signal{s2 * b_e.re - s1 * c_d.re, s2 * b_e.im - s1 * c_d.im});
        out(j, 0, a + be + cd);
        out(j, 1, p + r);
        out(j, 2, q + t);
        out(j, 3, q - t);
        out(j, 4, p - r);
      }
      return;
    }
    default:
      for (int64_t j = 0; j < m; ++j, w += stage.radix - 1) {
        for (int64_t q = 0; q < stage.radix; ++q) scratch[q] = in(j, q);
        for (int64_t q = 0; q < stage.radix; ++q) {
          Signal y = scratch[0];
          for (int64_t r = 1; r < stage.radix; ++r)
            y = y + fft::turn<inverted>(scratch[r], stage.roots[static_cast<size_t>(q * r % stage.radix)]);
          out(j, q, y);
        }
      }
  }
}

template <class T>
void LaneFft<T>::forward(Signal* x, size_t level, int64_t size) const {
  if (size == 1) return;
  const Stage& stage = stages_[level];
  const LaneBuffer<Signal> scratch(stage.radix > 5 ? stage.radix : 0);
  const int64_t m = size / stage.radix;
  butterfly<false>(stage, x, m, scratch.data());
  for (int64_t q = 0; q < stage.radix; ++q) forward(x + q * m, level + 1, m);
}

template <class T>
void LaneFft<T>::inverse(Signal* x, size_t level, int64_t size) const {
  if (size == 1) return;
  const Stage& stage = stages_[level];
  const LaneBuffer<Signal> scratch(stage.radix > 5 ? stage.radix : 0);
  const int64_t m = size / stage.radix;
  for (int64_t q = 0; q < stage.radix; ++q) inverse(x + q * m, level + 1, m);
  butterfly<true>(stage, x, m, scratch.data());
}

}  // namespace eigentrace
