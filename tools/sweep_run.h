#pragma once
// Working through a sweep's points: a child process of this program each, one a place.
#include <functional>
#include <string>
#include <vector>

#include "tools/sweep_store.h"

namespace eigentrace {

struct SweepRunOptions {
  std::string program;               ///< what trains a point: "PROGRAM train …"
  std::vector<std::string> devices;  ///< one place each: "cuda:0", "cuda:1"; "cpu" as often as wanted
  std::vector<std::string> only;     ///< names; empty: all points
  int threads = 1;                   ///< of each child
  /// For `train` of a new run: how it computes.
  std::vector<std::string> arithmetic = {"--dtype", "f32"};
  bool progress = true;  ///< lines on standard error
};

/// Trains every point that is not finished or failed, and returns when all have ended, those that other
/// processes hold included (a point they drop is taken over). SIGINT, SIGTERM and SIGHUP are passed on to the
/// children, which save and end; a SIGINT after that kills them. Returns true iff it was not stopped by a
/// signal.
bool run_sweep(SweepStore& store, const SweepRunOptions& options);

}  // namespace eigentrace
