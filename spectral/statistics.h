#pragma once
// Statistics of the eigenvalues of one (layer, head): bins, moments, quantiles, memory horizons.
// Everything reads log|λ| and arg λ; λ itself is never formed except to summarise |λ|.
#include <array>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

namespace eigentrace {

/// The eigenvalues of one (layer, head). log_abs: log|λ|, [sequences, steps, states], states innermost; −inf
/// is λ = 0. arg: same shape in radians, any branch; empty: all 0. A time-invariant system is one sequence of
/// one step with N states (or N steps with one state: the same).
struct EigenvalueView {
  std::span<const double> log_abs;
  std::span<const double> arg;
  int64_t sequences = 1, steps = 1, states = 1;
  bool time_varying =
      true;  ///< false: the values are the eigenvalues of one fixed Λ, not of successive steps
};

/// exact: |λ| in half-open [a, b), |arg| likewise, the last bin closed at 180°: both sum to 100 %.
/// published: bins closed at both ends (|λ| = 1 counts twice), signed phases (negative ones in no bin), and
/// one more phase bin above 180°, always empty.
enum class Binning { exact, published };

inline constexpr std::array<double, 8> radius_edges{0, 0.1, 0.5, 0.9,
                                                    1, 10,  100, std::numeric_limits<double>::infinity()};
inline constexpr std::array<double, 6> phase_edges_degrees{0, 1, 10, 45, 90, 180};
inline constexpr std::array<double, 7> quantile_levels{0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99};

/// Steps k at which the products Φ(s+k, s) are summarised: 1, 2, 4, …, 8192.
inline constexpr std::array<double, 14> memory_lags{1,   2,   4,   8,    16,   32,   64,
                                                    128, 256, 512, 1024, 2048, 4096, 8192};

/// Percentage per bin: mean and population standard deviation over the sequences.
struct Shares {
  std::vector<double> mean, std;
};

/// Moments of a set of numbers. std is the population's; skewness and kurtosis (excess) are 0 where std is 0;
/// quantiles at quantile_levels, linear between order statistics. All NaN for an empty set.
struct Summary {
  int64_t count = 0;
  double mean = 0, std = 0, skewness = 0, kurtosis = 0, min = 0, max = 0;
  std::array<double, quantile_levels.size()> quantiles{};
};

/// Memory horizon: the number of steps after which Π|λ| has first fallen to `threshold` or below, over all
/// start positions (time-invariant: over all eigenvalues).
struct Horizon {
  double threshold = 0;
  int64_t starts = 0;         ///< start positions looked at
  int64_t censored = 0;       ///< not fallen when the sequence ended (time-invariant: |λ| ≥ 1, never)
  int64_t undefined = 0;      ///< a NaN or infinite λ came first; left out of everything below
  double censored_share = 0;  ///< censored / (starts − undefined), 0…1
  double mean_reached = 0;  ///< mean over the starts that did fall (biased low where censored_share is large)
  /// Kaplan–Meier quantiles at quantile_levels: unbiased by censoring; +inf where the data do not reach so
  /// far.
  std::array<double, quantile_levels.size()> quantiles{};
};

/// What is left of a state after k steps: quantiles 5, 50 and 95 % of log|Φ(s+k, s)| = Σ_{l=s+1..s+k}
/// log|λ_l| over start positions, series and sequences (time-invariant: of k·log|λ|), at memory_lags. −inf: a
/// λ = 0 lies between; NaN: no series is so long. Of more than 65,536 products of a lag an evenly spread
/// choice is looked at.
struct MemoryCurve {
  std::array<double, memory_lags.size()> low{}, median{}, high{};
};

struct SpectrumStatistics {
  Binning binning = Binning::exact;
  bool time_varying = true;
  int64_t sequences = 0, steps = 0, states = 0;
  int64_t count = 0;       ///< eigenvalues given
  int64_t non_finite = 0;  ///< NaN or +inf in log|λ| or arg: in no exact share, no moment, no quantile
  int64_t zeros = 0;       ///< λ = 0 exactly: in the lowest bin and in |λ|, not in log|λ|
  int64_t sequences_binned =
      0;                  ///< sequences with at least one usable eigenvalue: what the shares average over
  Shares radius_percent;  ///< one entry per bin of radius_edges
  Shares phase_percent;   ///< one entry per bin of phase_edges_degrees (published: one more)
  Summary radius, log_radius;  ///< |λ|, log|λ|
  double expanding_share = 0;  ///< share of |λ| > 1, 0…1
  double unit_share = 0;       ///< share of |λ| = 1 exactly, 0…1
  double spectral_radius = 0, log_spectral_radius = 0;
  Horizon half_horizon, e_horizon;  ///< thresholds 1/2 and 1/e
  MemoryCurve memory;
  Summary time_constant;  ///< time-invariant only: −1/log|λ| in steps, over 0 < |λ| < 1
  Summary frequency;      ///< time-invariant only: |arg λ|/2π in cycles per step, 0…½
};

/// All statistics of one (layer, head). Errors: empty view, sizes that do not match.
SpectrumStatistics spectrum_statistics(const EigenvalueView& eigenvalues, Binning binning = Binning::exact);

/// Moments and quantiles of finite numbers.
Summary summarise(std::vector<double> values);

/// Angle moved into (−π, π]. NaN and infinities give NaN.
double wrap_angle(double radians);

/// −1/log|λ| in steps: +inf for |λ| = 1, 0 for λ = 0, negative (a growth time) for |λ| > 1.
std::vector<double> time_constants(std::span<const double> log_abs);
/// arg λ/2π in cycles per step, signed, in (−½, ½].
std::vector<double> frequencies(std::span<const double> arg);

/// Products of one eigenvalue series from prefix sums: Φ(t,s) = λ_t ⋯ λ_{s+1} = Π_{l=s+1..t} λ_l, 0 ≤ s ≤ t ≤
/// T, λ_1 … λ_T the series. O(T) to build, O(1) each; error about T·eps·max|Σ log|λ||. log|λ| = −inf is
/// allowed.
class TransitionProducts {
 public:
  TransitionProducts(std::span<const double> log_abs, std::span<const double> arg);
  int64_t steps() const { return static_cast<int64_t>(sums_.size()) - 1; }
  double log_abs(int64_t t, int64_t s) const;  ///< log|Φ(t,s)|; −inf past a zero; NaN past a non-finite λ
  double arg(int64_t t, int64_t s) const;      ///< arg Φ(t,s) in (−π, π]

 private:
  void check(int64_t t, int64_t s) const;
  struct Sum {
    double log_abs = 0, arg = 0;
    int64_t zeros = 0, non_finite = 0;
  };
  std::vector<Sum> sums_;
};

/// Step counts of memory_horizons with a meaning of their own.
inline constexpr int64_t horizon_censored = -1, horizon_undefined = -2;

/// For each start s: the smallest k ≥ 1 with Σ_{l=s..s+k−1} log|λ_l| ≤ log(threshold) (0 < threshold < 1), or
/// horizon_censored, or horizon_undefined. The product need not be monotone: the first crossing counts.
/// Equality up to the rounding of the prefix sums counts as reached. O(T log T).
std::vector<int64_t> memory_horizons(std::span<const double> log_abs, double threshold);

/// Distribution of horizons. horizons: as from memory_horizons, of one or more series; follow_up: for each,
/// the number of steps that could be watched (only read where censored).
Horizon horizon_distribution(std::span<const int64_t> horizons, std::span<const int64_t> follow_up,
                             double threshold);

/// Calls visit(name, value) for every number of the statistics, in a fixed order; value is an int64_t, a
/// double or a std::span<const double>. Writers of JSON, npz and tables use this list and no other.
template <class Visitor>
void visit_fields(const Summary& s, const std::string& prefix, Visitor&& visit) {
  visit(prefix + "count", s.count);
  visit(prefix + "mean", s.mean), visit(prefix + "std", s.std);
  visit(prefix + "skewness", s.skewness), visit(prefix + "kurtosis", s.kurtosis);
  visit(prefix + "min", s.min), visit(prefix + "max", s.max);
  visit(prefix + "quantiles", std::span<const double>(s.quantiles));
}

template <class Visitor>
void visit_fields(const Horizon& h, const std::string& prefix, Visitor&& visit) {
  visit(prefix + "threshold", h.threshold);
  visit(prefix + "starts", h.starts), visit(prefix + "censored", h.censored);
  visit(prefix + "undefined", h.undefined), visit(prefix + "censored_share", h.censored_share);
  visit(prefix + "mean_reached", h.mean_reached);
  visit(prefix + "quantiles", std::span<const double>(h.quantiles));
}

template <class Visitor>
void visit_fields(const MemoryCurve& m, const std::string& prefix, Visitor&& visit) {
  visit(prefix + "low", std::span<const double>(m.low));
  visit(prefix + "median", std::span<const double>(m.median));
  visit(prefix + "high", std::span<const double>(m.high));
}

template <class Visitor>
void visit_fields(const SpectrumStatistics& s, Visitor&& visit) {
  using Name = std::string;
  visit(Name("published_binning"), int64_t{s.binning == Binning::published});
  visit(Name("time_varying"), int64_t{s.time_varying});
  visit(Name("sequences"), s.sequences), visit(Name("steps"), s.steps), visit(Name("states"), s.states);
  visit(Name("count"), s.count), visit(Name("non_finite"), s.non_finite), visit(Name("zeros"), s.zeros);
  visit(Name("sequences_binned"), s.sequences_binned);
  visit(Name("radius_percent.mean"), std::span<const double>(s.radius_percent.mean));
  visit(Name("radius_percent.std"), std::span<const double>(s.radius_percent.std));
  visit(Name("phase_percent.mean"), std::span<const double>(s.phase_percent.mean));
  visit(Name("phase_percent.std"), std::span<const double>(s.phase_percent.std));
  visit_fields(s.radius, "radius.", visit);
  visit_fields(s.log_radius, "log_radius.", visit);
  visit(Name("expanding_share"), s.expanding_share), visit(Name("unit_share"), s.unit_share);
  visit(Name("spectral_radius"), s.spectral_radius),
      visit(Name("log_spectral_radius"), s.log_spectral_radius);
  visit_fields(s.half_horizon, "half_horizon.", visit);
  visit_fields(s.e_horizon, "e_horizon.", visit);
  visit_fields(s.memory, "memory.", visit);
  if (s.time_varying) return;
  visit_fields(s.time_constant, "time_constant.", visit);
  visit_fields(s.frequency, "frequency.", visit);
}

}  // namespace eigentrace
