#pragma once
// The simulations behind replay(): one sequence (or one channel) at a time, float64.
#include <cstdint>
#include <vector>

#include "spectral/realisation.h"

namespace eigentrace {

/// A sum of doubles carried as hi + lo, exact to about 2⁻¹⁰⁰ of the largest term.
struct DoubleDouble {
  double hi = 0, lo = 0;
  /// a − b without rounding.
  static DoubleDouble difference(double a, double b) {
    const double s = a - b, t = s - a;
    return {s, (a - (s - t)) - (b + t)};
  }
  DoubleDouble plus(const DoubleDouble& other) const {
    const double s = hi + other.hi, t = s - hi;
    const double error = (hi - (s - t)) + (other.hi - t) + (lo + other.lo);
    const double high = s + error;
    return {high, error - (high - s)};
  }
  double minus(const DoubleDouble& other) const { return (hi - other.hi) + (lo - other.lo); }
};

/// Host copy in double of sequence b of a tensor whose first axis is the batch.
std::vector<double> sequence_of(const Tensor& tensor, int64_t b);

/// Output [T,P] of head h of a Factored system on one sequence.
struct HeadInputs {
  int64_t steps, groups, heads, state, width;  ///< T, G, H, N, P
  std::vector<double> q, k, v;                 ///< [T,G,N], [T,G,N], [T,H,P]
  std::vector<double> weight;                  ///< [T,H] or empty
  std::vector<double> log_lambda;              ///< [T,H], [H] or empty
  std::vector<double> log_eta;                 ///< [T,H] or empty
  std::vector<double> altered;                 ///< [T,H] or empty: log λ instead; NaN: as it is
  bool lti = false;                            ///< log_lambda is [H]
  Gauge gauge = Gauge::state_normalised;
  double scale = 1;
};
HeadInputs head_inputs(const Realisation& system, int64_t b);
void simulate_factored(const HeadInputs& in, int64_t h, double* y);
void simulate_kernel(const HeadInputs& in, int64_t h, double* y);

/// y [T,D] of one sequence, D u left out.
void simulate_dense(const Realisation& system, int64_t b, std::vector<double>& y);
/// log_lambda: [T,D,N] instead of Δ A, or null.
void simulate_selective(const Realisation& system, int64_t b, std::vector<double>& y,
                        const double* log_lambda = nullptr);

/// y [B,T] of one S4 channel with input u [B,T], D u left out, by h ← Ā h + B̄ u, y = Re(C̄ h).
struct ChannelReplay {
  std::vector<double> y;
  double condition = 0;  ///< of I − Ā^length
};
ChannelReplay simulate_channel(const Realisation& system, int64_t channel, const std::vector<double>& u);

}  // namespace eigentrace
