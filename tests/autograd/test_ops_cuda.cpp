// The table of op cases on the GPU (or its emulation): the CPU's values in float64, gradients by differences,
// the same bits twice, no read of what nothing wrote.
#include <doctest/doctest.h>

#include <string>

#include "autograd/op_cases.h"
#include "tensor/error.h"
#include "tests/cuda_testing.h"

using namespace eigentrace;
using namespace eigentrace::testing;

namespace {

/// Calls check(case) with the case's name at hand; what it throws is a failure of that case alone.
template <class Check>
void for_each_case(const Check& check) {
  for (const OpCase& op_case : op_cases()) {
    CAPTURE(op_case.name);
    try {
      check(op_case);
    } catch (const Error& error) {
      FAIL_CHECK(std::string(error.what()));
    }
  }
}

}  // namespace

TEST_CASE("cuda ops: every op gives the CPU's values and gradients") {
  if (!gpu_here()) return;
  Context cpu = poisoned({}), gpu = gpu_context();
  for_each_case([&](const OpCase& op_case) {
    for (uint64_t seed : {1, 2, 3}) {
      CAPTURE(seed);
      const OpResults exact = run_case(cpu, op_case, DType::f64, seed);
      CHECK(largest_difference(run_case(gpu, op_case, DType::f64, seed), exact) < 1e-10);
      if (op_case.float32_tolerance > 0)
        CHECK(largest_difference(run_case(gpu, op_case, DType::f32, seed), exact) <
              op_case.float32_tolerance);
      CHECK(gpu.slab().in_use() == 0);
    }
  });
}

TEST_CASE("cuda ops: every op keeps its bound in every precision of products") {
  if (!gpu_here()) return;
  Context cpu = poisoned({});
  for (const Precision precision : {Precision::tf32x3, Precision::tf32, Precision::bf16}) {
    CAPTURE(name_of(precision));
    Context gpu = gpu_context(precision);
    for_each_case([&](const OpCase& op_case) {
      if (op_case.float32_tolerance == 0) return;
      const OpResults exact = run_case(cpu, op_case, DType::f64, 4);
      CHECK(largest_difference(run_case(gpu, op_case, DType::f32, 4), exact) < op_case.bound(precision));
    });
  }
}

TEST_CASE("cuda ops: two runs give the same bits") {
  if (!gpu_here()) return;
  Context gpu = gpu_context();
  for_each_case([&](const OpCase& op_case) {
    CHECK(run_case(gpu, op_case, DType::f32, 7) == run_case(gpu, op_case, DType::f32, 7));
  });
}

TEST_CASE("cuda ops: gradients agree with central differences" * doctest::skip(cuda_is_emulated())) {
  if (!gpu_here()) return;
  Context gpu = gpu_context();
  for_each_case(
      [&](const OpCase& op_case) { CHECK(check_case(gpu, op_case, 1).max_error() < op_case.tolerance); });
}
