#pragma once
// PyTorch's .pth files (a zip of a pickle and raw storages, torch 1.6 and later), read without running
// anything that is in them.
#include <string>
#include <utility>
#include <vector>

#include "tensor/io/host_array.h"

namespace eigentrace {

struct PthFile {
  /// In the file's order, row-major, "module." and "_orig_mod." in front of names removed. float16 and
  /// bfloat16 become f32 (exactly), bool becomes u8.
  std::vector<std::pair<std::string, HostArray>> tensors;
  std::vector<std::string> ignored;  ///< what is beside them: optimiser, epoch, …
};

/// Reads a state_dict, or the one under the key model, state_dict or model_state_dict of a dict.
/// Errors name the file and the place: the format before torch 1.6; a pickled module or other Python objects;
/// cut or damaged files; storages, shapes or strides that lie; names twice; more than max_bytes of storages,
/// or of tensors.
PthFile read_pth(const std::string& path, uint64_t max_bytes = uint64_t(1) << 36);

}  // namespace eigentrace
