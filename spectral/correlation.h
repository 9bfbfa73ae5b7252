#pragma once
// Across runs: rank correlation between a statistic and a figure of merit, and intervals of a mean over
// seeds. All random numbers are counter-based: the same seed gives the same p-value and interval anywhere.
#include <cstdint>
#include <span>
#include <vector>

namespace eigentrace {

/// Ranks 1…n; equal values share the average of their ranks. Errors: NaN.
std::vector<double> average_ranks(std::span<const double> values);

struct RankCorrelation {
  int64_t n = 0;
  double rho = 0;  ///< Spearman: Pearson's correlation of the average ranks; NaN when one side is constant
  double p_value = 0;  ///< two-sided: how often |rho| of a random pairing is at least as large; NaN with rho
  bool exact = false;  ///< all n! pairings were counted
  int64_t permutations = 0;  ///< pairings looked at
};

/// Spearman's rho of pairs (x_k, y_k), ties by average ranks, with a permutation p-value: every pairing when
/// n ≤ 8, else `permutations` seeded random ones, p = (1 + hits)/(1 + permutations), which is never 0.
/// Errors: different sizes, fewer than two pairs, NaN, no permutations.
RankCorrelation spearman(std::span<const double> x, std::span<const double> y, uint64_t seed = 0,
                         int64_t permutations = 9999);

struct MeanInterval {
  int64_t n = 0;
  double mean = 0, low = 0,
         high = 0;  ///< low and high are NaN for one value: it says nothing about the spread
  double level = 0;
};

/// Mean and its bootstrap percentile interval: quantiles (1 ∓ level)/2 of the means of seeded resamples
/// (Efron 1979). Errors: no values, non-finite values, level outside (0, 1), no resamples.
MeanInterval bootstrap_mean(std::span<const double> values, uint64_t seed = 0, double level = 0.95,
                            int64_t resamples = 10000);

/// Bootstrap percentile interval of Spearman's rho: pairs are resampled together; resamples with a constant
/// side have no rho and are left out. NaN where rho is, or where fewer than half of the resamples have one.
/// Errors: as spearman, and as bootstrap_mean.
struct RhoInterval {
  double low = 0, high = 0, level = 0;
};
RhoInterval bootstrap_spearman(std::span<const double> x, std::span<const double> y, uint64_t seed = 0,
                               double level = 0.95, int64_t resamples = 2000);

/// after − before of the same runs: mean difference with its bootstrap interval, and the two-sided p-value of
/// the sign-flip permutation test (how often |mean| is as large when each difference may have either sign):
/// every choice of signs when n ≤ 12, else seeded ones as in spearman.
struct PairedChange {
  MeanInterval difference;
  double p_value = 0;
  bool exact = false;
  int64_t permutations = 0;
};
PairedChange paired_change(std::span<const double> before, std::span<const double> after, uint64_t seed = 0,
                           double level = 0.95, int64_t resamples = 10000, int64_t permutations = 9999);

/// q-values of many tests: the smallest false discovery rate at which each is kept (Benjamini and Hochberg
/// 1995). NaN stays NaN and is no test.
std::vector<double> false_discovery_rates(std::span<const double> p_values);

}  // namespace eigentrace
