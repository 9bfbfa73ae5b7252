#pragma once
// What a run was made with; written to run folders, `info` and `--version`.
#include <string>

namespace eigentrace {

std::string version();  ///< "0.1.0"
std::string
commit();  ///< short hash of the sources at configuration time, "+" if they were changed; or "unknown"
std::string compiler();      ///< "gcc 12.2.0"
std::string cuda_version();  ///< "13.0", or "none" in a build without the toolkit
/// "eigentrace 0.1.0 (1a2b3c4), gcc 12.2.0, CUDA none, BLAS SkylakeX"
std::string version_line();

}  // namespace eigentrace
