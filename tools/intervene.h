#pragma once
// What a trained model loses or gains when its eigenvalues are changed: evaluations with and without
// interventions, and the file interventions.json of a run's folder.
#include <string>
#include <vector>

#include "tools/interventions.h"
#include "tools/run_folder.h"

namespace eigentrace {

inline constexpr const char* interventions_format = "eigentrace-interventions/1";

struct InterventionResult {
  std::string change;  ///< as written; "as trained" for the first row
  std::string path;    ///< ops, replay (one layer at least), none
  Evaluation evaluation;
  double seconds = 0;
  double condition = 0;  ///< S4: of the eigenvectors used; 0: none
};

struct InterventionTable {
  std::string name, stage, split, dtype;
  int64_t step = 0, examples = 0;
  std::vector<InterventionResult> rows;  ///< the first one without any of the changes asked for
};

struct InterveneRequest {
  std::vector<std::string> changes;
  std::vector<int64_t> layers, heads;  ///< of clauses that name none
  std::string stage = "trained";
  EvalSplit split = EvalSplit::validation;
  int64_t examples = 0, batch = 0;  ///< 0: the configuration's
  InterventionPath path = InterventionPath::automatic;
  DType dtype = DType::f32;
  Device device;
};

/// Evaluates the run's weights as trained (with the interventions of its own configuration), without those if
/// it has any, and once for every change asked for (after its own). Errors: usage, as of parse_interventions
/// and alter.
InterventionTable run_interventions(const RunFolder& folder, const InterveneRequest& request);

/// interventions.json: {format, kind, about: {…}, rows: [{change, path, loss, accuracy, macro_accuracy?,
/// labels, loss_change, accuracy_change, seconds, condition?}]}. NaN and infinities become null.
std::string interventions_json(const InterventionTable& table);
/// Back from a file. Error: not such a file.
InterventionTable read_interventions(const std::string& path);
/// As lines of text.
std::string interventions_text(const InterventionTable& table);
}  // namespace eigentrace
