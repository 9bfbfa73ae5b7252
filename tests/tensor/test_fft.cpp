#include "tensor/fft.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <complex>

#include "tensor/rng.h"
#include "tensor/worse.h"

using namespace eigentrace;

namespace {

/// Largest error of the spectrum and of the way back, in units of eps·max|X|.
template <class T>
std::pair<double, double> errors(int64_t n) {
  using Signal = typename LaneFft<T>::Signal;
  const auto fft = LaneFft<T>::plan(n);
  const LaneBuffer<Signal> x(n);
  Rng rng(static_cast<uint64_t>(n));
  std::vector<std::complex<double>> signal;
  const int lane = 3;
  for (int64_t t = 0; t < n; ++t) {
    for (int64_t l = 0; l < lane_count<T>; ++l)
      x[t].re[l] = static_cast<T>(rng.normal()), x[t].im[l] = static_cast<T>(rng.normal());
    signal.push_back({static_cast<double>(x[t].re[lane]), static_cast<double>(x[t].im[lane])});
  }
  fft->forward(x.data());
  double error = 0, most = 0, back = 0;
  for (int64_t p = 0; p < n; ++p) {
    std::complex<double> sum = 0;
    for (int64_t t = 0; t < n; ++t) {
      const auto w = fft::root<double>(fft->frequency(p) * t, n);
      sum += signal[static_cast<size_t>(t)] * std::complex<double>(w.re, w.im);
    }
    error = worse(error, std::abs(sum - std::complex<double>(x[p].re[lane], x[p].im[lane])));
    most = std::max(most, std::abs(sum));
  }
  fft->inverse(x.data());
  for (int64_t t = 0; t < n; ++t)
    back = std::max(back, std::abs(signal[static_cast<size_t>(t)] * static_cast<double>(n) -
                                   std::complex<double>(x[t].re[lane], x[t].im[lane])));
  const double eps = std::numeric_limits<T>::epsilon();
  return {error / (eps * most), back / (eps * most)};
}

}  // namespace

TEST_CASE("fft: equals the sum and comes back, at lengths of any factors") {
  for (int64_t n : {1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 15, 49, 60, 63, 100, 121, 126, 360, 512}) {
    CAPTURE(n);
    const auto [forward, back] = errors<double>(n);
    CHECK(forward < 16);
    CHECK(back < 32 * static_cast<double>(n));
    CHECK(errors<float>(n).first < 16);
  }
}

TEST_CASE("fft: roots of unity are exact at quarters and symmetric to the last bit") {
  for (int64_t n : {4, 12, 100, 8192}) {
    CHECK(fft::root<double>(n / 4, n).re == 0);
    CHECK(fft::root<double>(n / 4, n).im == -1);
    CHECK(fft::root<double>(n / 2, n).re == -1);
    for (int64_t k = 1; k < n; ++k) {
      CHECK(std::abs(fft::root<double>(k, n).re - fft::root<double>(n - k, n).re) < 2e-16);
      CHECK(std::abs(fft::root<double>(k, n).im + fft::root<double>(n - k, n).im) < 2e-16);
    }
  }
}

TEST_CASE("fft: fast lengths have factors 2, 3 and 5 only and are the next such") {
  CHECK(LaneFft<float>::fast_length(1) == 1);
  CHECK(LaneFft<float>::fast_length(7) == 8);
  CHECK(LaneFft<float>::fast_length(1023) == 1024);
  CHECK(LaneFft<float>::fast_length(2 * 1025 - 1) == 2160);
}
