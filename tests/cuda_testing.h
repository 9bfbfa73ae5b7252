#pragma once
// What the tests of CUDA bodies share. The "GPU" may be the emulation on the CPU (tests/simt).
#include <doctest/doctest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <vector>

#include "tensor/context.h"
#include "tensor/worse.h"

namespace eigentrace::testing {

/// False, with a message, on a machine without a GPU.
inline bool gpu_here() {
  if (cuda_device_count() > 0) return true;
  MESSAGE("no GPU here: this case needs one");
  return false;
}

/// True under compute-sanitizer (`make sanitize-gpu`), where a launch takes milliseconds: then tests leave
/// out passes that launch the same kernels again.
inline bool under_sanitizer() { return std::getenv("EIGENTRACE_SANITIZER") != nullptr; }

/// Step memory that starts as NaN.
inline Context poisoned(Device device, Precision precision = Precision::fp32) {
  Context ctx(device, device.is_cuda() ? size_t{256} << 20 : 0);
  ctx.poison = true;
  ctx.precision = precision;
  return ctx;
}
inline Context gpu_context(Precision precision = Precision::fp32) {
  return poisoned(parse_device("cuda"), precision);
}

/// While it lives, CPU kernels run on one thread: passes of tiny models would only wait for others.
struct OneThread {
  int before = omp_get_max_threads();
  OneThread() { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before); }
  OneThread(const OneThread&) = delete;
};

/// How a kernel computes, and the bound its test states for it.
struct Mode {
  const char* name;
  DType dtype;
  Precision precision;
  double bound;
};

/// ‖found − exact‖∞ / max(least, ‖exact‖∞); NaN where one is, infinite where sizes differ.
inline double relative_error(const std::vector<double>& found, const std::vector<double>& exact,
                             double least = 1e-30) {
  if (found.size() != exact.size()) return HUGE_VAL;
  double scale = least, worst = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    scale = std::max(scale, std::abs(exact[i]));
    const double d = std::abs(found[i] - exact[i]);
    worst = worse(worst, d);
  }
  return worst / scale;
}
/// The largest of several results'.
inline double relative_error(const std::vector<std::vector<double>>& found,
                             const std::vector<std::vector<double>>& exact, double least = 1e-30) {
  double worst = found.size() == exact.size() ? 0 : HUGE_VAL;
  for (size_t k = 0; k < std::min(found.size(), exact.size()); ++k)
    worst = worse(worst, relative_error(found[k], exact[k], least));
  return worst;
}

}  // namespace eigentrace::testing
