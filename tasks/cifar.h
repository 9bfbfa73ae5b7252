#pragma once
// CIFAR-10 (Krizhevsky 2009) pixel by pixel: 1,024 steps, one class of ten at the end.
//
//   input   59 43 50 68 98 …     grey levels in scan order, as tokens or normalised floats
//   label   6                    (frog)
#include <memory>
#include <optional>
#include <string>

#include "tasks/task.h"

namespace eigentrace {

struct CifarConfig {
  static constexpr const char* kName = "cifar";
  static constexpr const char* kAbout = "CIFAR-10 images, one pixel a step, ten classes";
  std::string data_dir = "data";
  bool grayscale = false;
  bool tokenize = false;
  std::optional<std::string> permute;
  double val_split = 0.1;
  uint64_t seed = 42;
};

template <class V>
void visit_fields(V& v, CifarConfig& c) {
  v("data_dir", c.data_dir, "folder of cifar-10-batches-bin (data_batch_1.bin, …)");
  v("grayscale", c.grayscale, "one grey level a pixel, else three colours");
  v("tokenize", c.tokenize, "grey levels as tokens 0..255, else normalised floats");
  v("permute", c.permute,
    "scan order: null (raster), br, snake, hilbert; transpose adds the columns as features");
  v("val_split", c.val_split, "share of the training set held out for validation");
  v("seed", c.seed, "of the choice of the held-out part");
}

/// Errors: tokens in colour or with transpose (usage); missing, truncated or wrong files.
std::unique_ptr<Task> make_task(const CifarConfig& config);

}  // namespace eigentrace
