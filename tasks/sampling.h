#pragma once
// Random numbers of the tasks: one stream for each (seed, split, index, part), and the samplers generators
// share.
#include <cstdint>
#include <span>
#include <vector>

#include "tasks/task.h"
#include "tensor/rng.h"

namespace eigentrace {

/// The stream of example `index` (< 2^48). `part` (0..15) separates what must be drawn apart, e.g. keys from
/// values. Splits, parts and examples never share a word; the top byte keeps them from the streams of other
/// rooms.
Rng example_rng(uint64_t seed, Split split, int64_t index, int part = 0);

/// A uniform permutation of 0..n-1, n < 2^32, a pure function of (seed, epoch).
std::vector<int64_t> permutation(uint64_t seed, uint64_t epoch, int64_t n);

/// The order in which the published loaders shuffle a data set before they cut off its validation part:
/// PyTorch's randperm on the CPU, a Fisher–Yates shuffle from the front by MT19937 (n < 2^32 / 20).
std::vector<int64_t> published_permutation(uint64_t seed, int64_t n);

/// Fills `out` with a uniform ordered sample without replacement from 0..population-1, population ≥
/// out.size(). Fisher–Yates of the first places only, undone afterwards: O(out.size()), not O(population).
void sample_distinct(Rng& rng, int64_t population, std::span<int32_t> out);

/// Draws from 0..items-1 one after another, without replacement, each time in proportion to the weights left.
/// By the exponential race (Efraimidis and Spirakis 2006): item g arrives at time E_g / w_g, E_g ~ Exp(1),
/// and the order of arrival has exactly that law. inverse_weights: 1 / w_g. O(items + draws log draws).
void sample_weighted(Rng& rng, std::span<const double> inverse_weights, std::span<int32_t> out);

}  // namespace eigentrace
