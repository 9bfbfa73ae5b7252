#pragma once
// Where the configurations that come with the program are.
#include <string>

namespace eigentrace {

/// Path of tasks/experiments/NAME.yaml: beside an installed program (../share/eigentrace/experiments), else
/// in the sources it was built from. UsageError: no such experiment.
std::string experiment_path(const std::string& name);

}  // namespace eigentrace
