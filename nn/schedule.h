#pragma once
// Learning rates: every schedule of the study and ours, once, on the host, in double.
#include <cstdint>

#include "nn/optimiser.h"

namespace eigentrace {

/// Reduce-on-plateau: figures larger than the best so far reset the count; once it exceeds `patience` the
/// scale is multiplied by `factor` and the count is 0 again.
struct Plateau {
  double best = -1e300, scale = 1;
  int64_t count = 0;
};

/// Rate of each group at each step s = 0, 1, …
///   cosine     warm-up lr (s+1)/w for s < w, then lr_min + (lr − lr_min)(1 + cos π(s−w)/(n−w))/2
///   constant   warm-up, then lr
///   published  what the study's trainers do, oddities included:
///     transformer, mamba: (cosine from lr to 5e-6 over n ticks) · min(1, (s+1)/w), a tick a step or an
///     epoch;
///       without the warm-up key of the trainer's kind the rate is constant. param_group: that cosine without
///       warm-up, always.
///     s4, s5, lru: step 0 at the full rate, step s > 0 at f(s−1): warm-up lr (s+1)/w, then (cosine_anneal)
///       lr_min + (lr − lr_min)(1 + cos π min(s, n−w)/(n−w))/2, s counted from the very start; else lr. By
///       epochs w and n count ⌊examples/batch⌋ steps an epoch.
class LearningRates {
 public:
  /// examples: of the training split (epochs need it).
  LearningRates(const TrainConfig& train, int64_t examples);
  double at(GroupKind kind, int64_t step) const;
  std::vector<double> at(const std::vector<ParameterGroup>& groups, int64_t step) const;

  /// Steps of the whole run, and of one epoch (the ragged last batch included).
  int64_t total_steps() const { return total_; }
  int64_t steps_per_epoch() const { return epoch_; }

  /// After each evaluation: a figure that is better when larger.
  void evaluated(double figure);
  const Plateau& plateau() const { return plateau_; }
  void set_plateau(const Plateau& plateau) { plateau_ = plateau; }

 private:
  double base(GroupKind kind) const;
  double ours(double lr, int64_t step) const;
  double torch(GroupKind kind, double lr, int64_t step) const;
  double jax(double lr, int64_t step) const;
  TrainConfig train_;
  int64_t epoch_ = 0, counted_epoch_ = 0, total_ = 0;
  Plateau plateau_;
};

}  // namespace eigentrace
