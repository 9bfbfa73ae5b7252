#pragma once
// Small random systems of every family with the output a naive float64 form gives (sums over the past, never
// a recurrence in λ). Shared by the tests of realisation, replay and reading.
#include <functional>
#include <vector>

#include "spectral/realisation.h"

namespace eigentrace {

struct TestSystem {
  Realisation system;
  Tensor y;
};

/// steps, element type of the inputs (y is computed in double and rounded to it), seed.
using SystemBuilder = std::function<TestSystem(int64_t steps, DType dtype, uint64_t seed)>;

TestSystem softmax_system(int64_t steps, DType dtype, uint64_t seed);
TestSystem linear_system(int64_t steps, DType dtype, uint64_t seed);
/// log η = exp(n + offset), n uniform in (−1, 0): offset 6 reaches 400, offset 9 underflows everywhere.
TestSystem norm_system_offset(int64_t steps, DType dtype, uint64_t seed, double offset);
inline TestSystem norm_system(int64_t steps, DType dtype, uint64_t seed) {
  return norm_system_offset(steps, dtype, seed, 1.0);
}
TestSystem mamba2_system(int64_t steps, DType dtype, uint64_t seed);
TestSystem pseudo_lti_system(int64_t steps, DType dtype, uint64_t seed);
TestSystem mamba1_system(int64_t steps, DType dtype, uint64_t seed);
TestSystem lru_system(int64_t steps, DType dtype, uint64_t seed);
TestSystem s5_bidirectional_system(int64_t steps, DType dtype, uint64_t seed);
TestSystem s4_system(int64_t steps, DType dtype, uint64_t seed);

/// One builder a family.
std::vector<SystemBuilder> all_systems();

}  // namespace eigentrace
