#pragma once
// Spectra of a model: one evaluation pass, every mixer relabelled as the dynamical system it is and read
// inside the pass; the published reading beside it; tables of both.
#include <functional>
#include <string>
#include <vector>

#include "nn/intervention.h"
#include "nn/model.h"
#include "nn/step_reading.h"
#include "spectral/files.h"
#include "tasks/task.h"

namespace eigentrace {

struct SpectrumRequest {
  bool published = false;  ///< the published reading is the record's (else it is the exact one)
  bool compare = false;    ///< both, and their difference per layer; the exact one is the record's
  bool check = false;      ///< replay every layer in float64
  /// The published reading is taken with dropout drawn, as the study does for untrained weights (none after
  /// the encoder); the exact one and the replay never are.
  bool dropout = false;
  ReadingOptions reading;
  ReplayOptions replay;
  /// The pass runs with these: the exact reading shows the eigenvalues the layer then has, and the replay
  /// simulates them. Null: none. The published reading does not know of them.
  std::shared_ptr<const Interventions> interventions;
};

/// The pass of model_spectra now, what is left of it later: the function that is returned finds
/// eigenvalues and statistics from host copies of what they are a function of, so that another thread may
/// call it (once) while the model is trained on. Statistics are of all eigenvalues; of a layer's no more than
/// about `keep` are then kept in the record (0: all; see thinned).
std::function<SpectrumRecord()> begin_spectra(Context& ctx, const Model& model, const ModelInput& input,
                                              const SpectrumRequest& request = {}, int64_t keep = 0);

/// Spectra of all layers on one batch, in layer order; `about` says model and batch. The pass draws no
/// dropout, uses BatchNorm's running statistics and never TF32. Memory: one pass without gradients, one
/// layer's eigenvalues, for replay one sequence in double. Layers without a published reading (Mamba-1) are
/// left out where it alone is asked for. Errors: those of reading and replay.
SpectrumRecord model_spectra(Context& ctx, const Model& model, const ModelInput& input,
                             const SpectrumRequest& request = {});

/// The exact reading of what a training step's own pass computed, from host copies: any thread. `input`:
/// [sequences, steps] of them. `keep` as above.
SpectrumRecord step_spectra(const Model& model, const std::vector<StepReading::Layer>& layers,
                            const Shape& input, const SpectrumRequest& request = {}, int64_t keep = 0);

/// Sequences the study reads a spectrum of: 64 (MQAR, CIFAR and what it does not name), 32 (IMDB, ListOps), 8
/// (WikiText).
int64_t study_batch(const std::string& task);

/// The first `examples` of the unshuffled test split (validation where there is none), or all of fewer,
/// padded to its longest, or to the task's full length as S4, S5 and LRU are always evaluated; tokens sorted.
Batch spectrum_batch(const Task& task, int64_t examples, bool full_length = false);

/// A line per layer and head: share of |λ| per bin with its deviation over the batch, median, expanding
/// share, horizon.
std::string spectrum_table(const SpectrumRecord& record);
/// A line per layer and reading where both were read: mean difference, moments, bins side by side.
std::string comparison_table(const SpectrumRecord& record);
/// A line per layer: the replay's relative error, or "dead branch"; "agrees" or "DISAGREES".
std::string replay_table(const SpectrumRecord& record, double tolerance);
/// True iff every layer that was replayed agrees to `tolerance`.
bool replay_agrees(const SpectrumRecord& record, double tolerance);
/// Relative error a replay may have: 1e-10 in float64 (S4 1e-8), 1e-4 in float32.
double replay_tolerance(DType dtype, Family family);

}  // namespace eigentrace
