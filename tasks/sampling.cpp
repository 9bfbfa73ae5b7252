#include "tasks/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <utility>

#include "tensor/error.h"

namespace eigentrace {

namespace {
constexpr uint64_t kExamples = 0xE7ull << 56;  // top bytes of this room's streams
constexpr uint64_t kOrders = 0xE8ull << 56;
}  // namespace

Rng example_rng(uint64_t seed, Split split, int64_t index, int part) {
  const uint64_t stream = kExamples | static_cast<uint64_t>(part) << 52 | static_cast<uint64_t>(split) << 48;
  return Rng(seed, stream | static_cast<uint64_t>(index));
}

std::vector<int64_t> permutation(uint64_t seed, uint64_t epoch, int64_t n) {
  if (n > UINT32_MAX) fail("permutation: n: expected less than 2^32");
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  Rng rng(seed, kOrders | epoch);
  for (int64_t i = n - 1; i > 0; --i) std::swap(order[i], order[rng.below(static_cast<uint32_t>(i + 1))]);
  return order;
}

std::vector<int64_t> published_permutation(uint64_t seed, int64_t n) {
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::mt19937 words(static_cast<uint32_t>(seed));
  for (int64_t i = 0; i + 1 < n; ++i) std::swap(order[i], order[i + words() % static_cast<uint64_t>(n - i)]);
  return order;
}

void sample_distinct(Rng& rng, int64_t population, std::span<int32_t> out) {
  const int64_t n = static_cast<int64_t>(out.size());
  if (n > population) fail("sample_distinct: out: expected no more items than the population has");
  // Between calls deck[i] == i, so nothing is carried from one example to the next.
  thread_local std::vector<int32_t> deck;
  thread_local std::vector<int32_t> touched;
  for (int64_t i = static_cast<int64_t>(deck.size()); i < population; ++i)
    deck.push_back(static_cast<int32_t>(i));
  touched.resize(n);
  for (int64_t i = 0; i < n; ++i) {
    touched[i] = static_cast<int32_t>(i + rng.below(static_cast<uint32_t>(population - i)));
    std::swap(deck[i], deck[touched[i]]);
    out[i] = deck[i];
  }
  for (int64_t i = n - 1; i >= 0; --i) std::swap(deck[i], deck[touched[i]]);
}

void sample_weighted(Rng& rng, std::span<const double> inverse_weights, std::span<int32_t> out) {
  if (out.size() > inverse_weights.size())
    fail("sample_weighted: out: expected no more draws than there are weights");
  thread_local std::vector<std::pair<double, int32_t>> arrivals;
  arrivals.resize(inverse_weights.size());
  for (size_t g = 0; g < arrivals.size(); ++g)
    arrivals[g] = {-std::log1p(-rng.uniform()) * inverse_weights[g], static_cast<int32_t>(g)};
  std::partial_sort(arrivals.begin(), arrivals.begin() + static_cast<int64_t>(out.size()), arrivals.end());
  for (size_t i = 0; i < out.size(); ++i) out[i] = arrivals[i].second;
}

}  // namespace eigentrace
