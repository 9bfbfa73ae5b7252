#pragma once
// Counter-based random numbers: a pure function of (key, counter), the same on every device and for any
// number of threads. Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
#include <cmath>
#include <cstdint>

#include "tensor/hd.h"

namespace eigentrace {

struct Philox4 {
  uint32_t x[4];
};

/// Philox4x32, ten rounds unless said otherwise. key: 64 bits (a seed), counter: 128 bits as (hi, lo). out:
/// four uniform 32-bit words.
template <int rounds = 10>
ET_HD Philox4 philox(uint64_t key, uint64_t counter_hi, uint64_t counter_lo) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  uint32_t c0 = static_cast<uint32_t>(counter_lo), c1 = static_cast<uint32_t>(counter_lo >> 32);
  uint32_t c2 = static_cast<uint32_t>(counter_hi), c3 = static_cast<uint32_t>(counter_hi >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < rounds; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c0;
    const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c0 = n0, c1 = static_cast<uint32_t>(p1), c2 = n2, c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

/// A stream of random numbers for host code: stream `stream` of seed `seed`, read in order.
/// Two (seed, stream) pairs never share a word, so example k of a split is `Rng(seed, split_and_k)`.
class Rng {
 public:
  explicit Rng(uint64_t seed, uint64_t stream = 0) : seed_(seed), stream_(stream) {}

  /// Uniform 32 bits.
  uint32_t u32() {
    if (next_ == 4) block_ = philox(seed_, stream_, counter_++), next_ = 0;
    return block_.x[next_++];
  }
  /// Uniform 64 bits.
  uint64_t u64() {
    const uint64_t low = u32();
    return low | static_cast<uint64_t>(u32()) << 32;
  }
  /// Uniform double in [0, 1), 53 bits.
  double uniform() { return static_cast<double>(u64() >> 11) * 0x1p-53; }
  double uniform(double low, double high) { return low + (high - low) * uniform(); }
  /// Uniform integer in [0, n), n ≥ 1, without bias (Lemire's method, rejection included).
  uint32_t below(uint32_t n) {
    uint64_t m = static_cast<uint64_t>(u32()) * n;
    if (static_cast<uint32_t>(m) < n) {
      const uint32_t threshold = -n % n;
      while (static_cast<uint32_t>(m) < threshold) m = static_cast<uint64_t>(u32()) * n;
    }
    return static_cast<uint32_t>(m >> 32);
  }
  /// Standard normal (Box–Muller; the second value of a pair is kept for the next call).
  double normal() {
    if (has_spare_) return has_spare_ = false, spare_;
    const double u = 1.0 - uniform(), v = uniform();  // u in (0, 1]: the logarithm is finite
    const double radius = std::sqrt(-2.0 * std::log(u)), angle = 6.283185307179586476925 * v;
    spare_ = radius * std::sin(angle), has_spare_ = true;
    return radius * std::cos(angle);
  }

 private:
  uint64_t seed_, stream_, counter_ = 0;
  Philox4 block_{};
  int next_ = 4;
  double spare_ = 0;
  bool has_spare_ = false;
};

}  // namespace eigentrace
