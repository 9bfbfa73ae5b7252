#pragma once
// MNIST (LeCun et al. 1998) pixel by pixel: 784 steps of x/255, one digit of ten at the end; by default in
// the order of bit reversal ("permuted MNIST").
#include <memory>
#include <string>

#include "tasks/task.h"

namespace eigentrace {

struct MnistConfig {
  static constexpr const char* kName = "mnist";
  static constexpr const char* kAbout = "MNIST digits, one pixel a step, permuted or in raster order";
  std::string data_dir = "data";
  bool permute = true;
  double val_split = 0.1;
  uint64_t seed = 42;
};

template <class V>
void visit_fields(V& v, MnistConfig& c) {
  v("data_dir", c.data_dir,
    "folder of train-images-idx3-ubyte, … (plain or .gz; also in mnist or MNIST/raw)");
  v("permute", c.permute, "show pixels by bit reversal of their number among 1,024, else in raster order");
  v("val_split", c.val_split, "share of the training set held out for validation");
  v("seed", c.seed, "of the choice of the held-out part");
}

/// Errors: missing, truncated or wrong files.
std::unique_ptr<Task> make_task(const MnistConfig& config);

}  // namespace eigentrace
