#pragma once
// Weights that the study's PyTorch code saved (.pth), into a model of ours. The names are the same; what the
// published modules register besides their parameters (position_ids, masks) is left out.
#include <string>
#include <vector>

#include "nn/model.h"

namespace eigentrace {

struct ImportReport {
  int64_t tensors = 0;                  ///< taken
  std::vector<std::string> left_out;    ///< tensors that hold no weights
  std::vector<std::string> ignored;     ///< what the file has beside the state_dict: optimiser, epoch, …
  std::vector<std::string> not_finite;  ///< taken, but with NaN or infinity in them
};

/// Reads a .pth file (tensor/io/pth.h) into the model, converting between f32 and f64. The model is changed
/// only if all fits. Errors name every tensor that is missing, that the model does not have, or that has
/// another shape or integers for numbers; and those of read_pth.
ImportReport import_pth(const std::string& path, Model& model);

/// True iff a tensor of this name holds no weights: a buffer of the published code that nothing reads.
bool harmless_extra(const std::string& name);

}  // namespace eigentrace
