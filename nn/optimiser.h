#pragma once
// Adam and AdamW with parameter groups, and clipping by the global norm.
#include <string>
#include <utility>
#include <vector>

#include "nn/config/config.h"
#include "nn/module.h"
#include "tensor/kernels.h"

namespace eigentrace {

/// Which rate a group follows.
enum class GroupKind : unsigned char { regular, ssm, named };

/// Parameters that share rate and constants.
struct ParameterGroup {
  GroupKind kind = GroupKind::regular;
  std::string name;          ///< for messages: "regular", "ssm", or what `param_group` says
  std::vector<int> members;  ///< indices into the ParameterList
  double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weight_decay = 0;
  int64_t update_every = 1;  ///< gradients are summed over so many steps, then applied
};

/// The groups of spec: transformer and mamba one (and train.param_group's); s4 and lru the parameters whose
/// last name is in ssm_lr_vars, without decay, and the others; s5 likewise with Lambda_re, Lambda_im,
/// log_step and, as published, β = (0.9, 0.999). A group without members is an error (usage) under our
/// dialect; in a published run (the study's dialect or schedule) it is left out and told in `notices`.
std::vector<ParameterGroup> make_groups(const ParameterList& list, const ModelConfig& model,
                                        const TrainConfig& train, Dialect dialect,
                                        std::vector<std::string>* notices = nullptr);

struct OptimiserOptions {
  double clip_norm = 0;  ///< 0: no clipping
  bool published_complex = false;
};
OptimiserOptions optimiser_options(const TrainConfig& train);

class Optimiser {
 public:
  /// Errors: a parameter in no group or in two.
  Optimiser(ParameterList& list, std::vector<ParameterGroup> groups, const OptimiserOptions& options);

  /// One step from the gradients the last backward pass left. rates: one per group. If the gradients' norm is
  /// not finite nothing changes but the step count.
  void step(Context& ctx, const std::vector<double>& rates);
  /// The same step in the parts that a captured one is made of: `row` is what the update numbered `step`
  /// (from 1) reads, [groups, 4]; `update` reads it from `device_rates` and does not count.
  std::vector<double> row(int64_t step, const std::vector<double>& rates) const;
  void update(Context& ctx);
  const Tensor& device_rates() const { return rates_; }  ///< f64 [groups, 4]
  const Tensor& device_norm() const { return norm_; }    ///< f64 [1]

  const std::vector<ParameterGroup>& groups() const { return groups_; }
  int64_t steps() const { return steps_; }
  /// Norm of the last step's gradients before clipping (read back from the device).
  double norm() const { return norm_.item(); }
  /// True iff the last step was skipped because that norm is not finite.
  bool skipped() const;

  /// Moments and sums under "optimiser.m/<name>", "optimiser.v/<name>", "optimiser.sum/<name>": what a
  /// checkpoint keeps, with steps().
  std::vector<std::pair<std::string, Tensor>> state() const;
  void set_steps(int64_t steps) { steps_ = steps; }

 private:
  ParameterList& list_;
  std::vector<ParameterGroup> groups_;
  OptimiserOptions options_;
  int64_t steps_ = 0;
  std::vector<kernels::AdamTensors> tensors_;  // by parameter
  std::vector<kernels::AdamGroup> constants_;
  Tensor rates_, norm_;
};

}  // namespace eigentrace
