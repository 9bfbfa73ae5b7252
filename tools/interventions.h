#pragma once
// Interventions on a run's models: what frozen eigenvalues are frozen to, and the hooks of training and
// evaluation.
#include <memory>
#include <string>
#include <vector>

#include "nn/config/config.h"
#include "nn/intervention.h"
#include "nn/model.h"
#include "tasks/task.h"
#include "tools/trainer.h"

namespace eigentrace {

/// The interventions of spectral.intervention, in order.
std::vector<Intervention> interventions_of(const RunConfig& config);

/// Gives every freeze its values: freeze=mean and freeze=profile those of `averaged` on the configuration's
/// spectrum batch; freeze=initial and freeze=FILE the fixed eigenvalues of the weights in `initial` or FILE.
/// Where those vary in time they must be read on the very batch: left open here, and an error unless
/// `per_batch`. Errors (usage): an average of eigenvalues that are fixed; no such file; another model.
std::shared_ptr<Interventions> resolve_interventions(Context& ctx, const RunConfig& config, const Task& task,
                                                     std::vector<Intervention> list, const Model& averaged,
                                                     const std::string& initial, bool per_batch);

/// Error (usage): an intervention in a layer that has no differentiable form with other eigenvalues.
void check_trainable(const std::vector<Intervention>& list, const Model& model);

/// The interventions that a run is trained with, from its configuration and the first weights in `initial`;
/// null: none. Errors (usage): also, a family that cannot be trained with one.
std::shared_ptr<const Interventions> training_interventions(Context& ctx, const RunConfig& config,
                                                            const Task& task, const Model& model,
                                                            const std::string& initial);

/// Evaluation passes of one model with interventions, eigenvalues of other weights on the same batch
/// included.
class InterventionHook {
 public:
  InterventionHook(std::shared_ptr<Interventions> interventions, const Model& model,
                   const std::string& initial, InterventionPath path);
  /// For evaluate(); valid while this object lives.
  PassHook hook();
  double condition() const { return intervener_.condition(); }
  bool replayed() const { return intervener_.replayed(); }

 private:
  std::shared_ptr<Interventions> interventions_;
  Intervener intervener_;
  std::vector<std::pair<size_t, std::unique_ptr<Model>>> sources_;  ///< freezes that are read on every batch
};

}  // namespace eigentrace
