#include "nn/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "tensor/error.h"

namespace eigentrace {
namespace {

/// From high (s = 0) to low (s = n) along half a cosine.
double half_cosine(double high, double low, double s, double n) {
  const double share = n > 0 ? std::min(s / n, 1.0) : 1.0;
  return low + (high - low) * 0.5 * (1 + std::cos(std::numbers::pi * share));
}

}  // namespace

LearningRates::LearningRates(const TrainConfig& train, int64_t examples) : train_(train) {
  if (examples < 1 && !train.steps()) fail("LearningRates: examples: at least 1 expected, found none");
  epoch_ = std::max<int64_t>(1, (examples + train.batch_size - 1) / train.batch_size);
  counted_epoch_ = std::max<int64_t>(1, examples / train.batch_size);
  total_ = train.steps() ? *train.total_steps : train.num_epochs.value_or(0) * epoch_;
}

double LearningRates::base(GroupKind kind) const {
  const double lr = kind == GroupKind::regular ? train_.lr
                    : kind == GroupKind::ssm   ? train_.ssm_lr.value_or(train_.lr)
                                               : train_.group_lr.value_or(train_.lr);
  return plateau_.scale < 1 ? std::max(lr * plateau_.scale, std::min(lr, train_.lr_min)) : lr;
}

double LearningRates::ours(double lr, int64_t step) const {
  const int64_t warmup =
      train_.steps() ? train_.warmup_steps.value_or(0) : train_.warmup.value_or(0) * epoch_;
  if (step < warmup) return lr * static_cast<double>(step + 1) / static_cast<double>(warmup);
  if (train_.schedule == ScheduleKind::constant) return lr;
  return half_cosine(lr, std::min(lr, train_.lr_min), static_cast<double>(step - warmup),
                     static_cast<double>(total_ - warmup));
}

double LearningRates::torch(GroupKind kind, double lr, int64_t step) const {
  const double tick = static_cast<double>(train_.steps() ? step : step / epoch_);
  const auto ticks = static_cast<double>(train_.steps() ? *train_.total_steps : *train_.num_epochs);
  const double annealed = half_cosine(lr, 5e-6, tick, ticks);
  if (kind == GroupKind::named) return annealed;
  const std::optional<int64_t> warmup = train_.steps() ? train_.warmup_steps : train_.warmup;
  if (!warmup) return lr;  // the cosine ticks only inside the warm-up's context
  return annealed * std::min(1.0, (tick + 1) / static_cast<double>(std::max<int64_t>(1, *warmup)));
}

double LearningRates::jax(double lr, int64_t step) const {
  if (step == 0) return lr;
  const int64_t s = step - 1;  // the rate is set after the optimiser's step
  const int64_t warmup =
      train_.steps() ? train_.warmup_steps.value_or(0) : train_.warmup.value_or(0) * counted_epoch_;
  const int64_t total = train_.steps() ? total_ : *train_.num_epochs * counted_epoch_;
  const bool warming = train_.steps() ? s < warmup : s / epoch_ < train_.warmup.value_or(0);
  if (warming) return lr * static_cast<double>(s + 1) / static_cast<double>(warmup);
  if (!train_.cosine_anneal) return lr;
  return half_cosine(lr, train_.lr_min, static_cast<double>(s), static_cast<double>(total - warmup));
}

double LearningRates::at(GroupKind kind, int64_t step) const {
  const double lr = base(kind);
  if (train_.schedule != ScheduleKind::published) return ours(lr, step);
  return train_.ssm ? jax(lr, step) : torch(kind, lr, step);
}

std::vector<double> LearningRates::at(const std::vector<ParameterGroup>& groups, int64_t step) const {
  std::vector<double> rates;
  rates.reserve(groups.size());
  for (const ParameterGroup& group : groups) rates.push_back(at(group.kind, step));
  return rates;
}

void LearningRates::evaluated(double figure) {
  const bool reads_it = train_.ssm || train_.schedule != ScheduleKind::published;
  if (train_.lr_patience <= 0 || !reads_it) return;
  if (figure > plateau_.best) {
    plateau_.best = figure, plateau_.count = 0;
  } else if (++plateau_.count > train_.lr_patience) {
    plateau_.scale *= train_.reduce_factor, plateau_.count = 0;
  }
}

}  // namespace eigentrace
