#pragma once
// One training step: forward, loss, backward, clipping, optimiser, bookkeeping. On a GPU the step of each
// batch shape runs once as it is, is then captured as one CUDA graph and replayed; nothing in it reads from
// the host or is read by it, so the host only looks at the results now and then.
#include <functional>
#include <string>
#include <vector>

#include "nn/model.h"
#include "nn/optimiser.h"
#include "nn/schedule.h"
#include "nn/step_reading.h"
#include "tensor/graph.h"

namespace eigentrace {

/// What is done to every pass before it runs: hooks set, settings changed. Empty: nothing. A pass with a hook
/// is never captured: what the hook does may look at the host.
using PassHook = std::function<void(Forward&, const ModelInput&)>;

/// All that captured work bakes in about a batch.
std::vector<int64_t> shape_key(const ModelInput& input, const Labels& labels);

/// What a step needs.
struct StepPlan {
  size_t peak = 0;     ///< bytes of step memory
  std::string label;   ///< the op that most of it is in use at
  size_t reading = 0;  ///< bytes that a reading copies, outside step memory
};

/// What a step reports, in the order of steps.
struct StepResult {
  int64_t step = 0;
  double loss_sum = 0;  ///< Σ weight · loss over its labels
  double correct = 0;
  double norm = 0;      ///< of the gradients, before clipping
  bool failed = false;  ///< this step's or an earlier one's loss or norm is not finite: it moved nothing
};

class TrainStep {
 public:
  /// What is passed in must outlive it. capture: use graphs on a GPU (false: every step eagerly; same bits).
  TrainStep(Context& ctx, Model& model, Optimiser& optimiser, const LearningRates& rates, uint64_t seed,
            bool capture = true);

  /// Stands before step `step`, as at the start or after loading a checkpoint.
  void start(int64_t step);
  void set_hook(PassHook hook) { hook_ = std::move(hook); }
  /// Says that `rates` gives other numbers from the next step on (a plateau).
  void rates_changed();
  /// One step on a batch whose tensors keep their addresses as long as their shapes stay. Does not wait for
  /// it. With a reading (not null) the same numbers to the same bits, and copies of what eigenvalues are a
  /// function of: on a GPU a graph of its own. Error: out of step memory, naming the op.
  void run(const ModelInput& input, const Labels& labels, StepReading* reading = nullptr);
  /// The step as a dry run; the reading's memory is asked for. Error: of that there is too little.
  StepPlan plan(const ModelInput& input, const Labels& labels, StepReading* reading = nullptr);
  /// Results of the steps since the last call; waits for them. At most `most_pending` steps may lie between
  /// calls.
  std::vector<StepResult> results();
  static constexpr int64_t most_pending = 256;
  int64_t pending() const { return step_ - read_; }

  /// The step's forward and backward pass alone, looking at every value if `check_finite`.
  Loss forward_backward(Context& ctx, const ModelInput& input, const Labels& labels, bool check_finite,
                        StepReading* reading = nullptr);
  /// Nodes of the graph used last; 0: the last step ran eagerly.
  size_t graph_nodes() const { return last_->nodes(); }

 private:
  void fill_table();
  void enqueue(const ModelInput& input, const Labels& labels, StepReading* reading);

  Context& ctx_;
  Model& model_;
  Optimiser& optimiser_;
  const LearningRates& rates_;
  uint64_t seed_;
  int64_t step_ = 0, read_ = 0, table_first_ = 0;
  Tensor table_, first_, ring_;
  GraphCache graphs_, with_reading_, eager_{false};
  const GraphCache* last_ = &graphs_;
  PassHook hook_;
};

}  // namespace eigentrace
