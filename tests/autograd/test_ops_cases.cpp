// What is asked of every op alike, over the table of cases.
#include <doctest/doctest.h>
#include <omp.h>

#include <set>
#include <string>
#include <vector>

#include "autograd/op_cases.h"
#include "tests/cuda_testing.h"

using namespace eigentrace;
using testing::OneThread;

TEST_CASE("ops: every op has a case, and the names of cases tell them apart") {
  std::vector<int> counts(op_count);
  std::set<std::string> names;
  for (const OpCase& op_case : op_cases()) {
    ++counts[static_cast<size_t>(op_case.op)];
    CHECK_MESSAGE(names.insert(op_case.name).second, op_case.name);
  }
  for (int op = 0; op < op_count; ++op)
    CHECK_MESSAGE(counts[static_cast<size_t>(op)] > 0, name_of(static_cast<Op>(op)));
}

TEST_CASE("ops: every gradient agrees with central differences, in poisoned memory") {
  const OneThread one_thread;
  Context ctx;
  ctx.poison = true;
  for (const OpCase& op_case : op_cases())
    for (uint64_t seed : {1, 2, 3, 4}) {
      CAPTURE(op_case.name);
      CAPTURE(seed);
      const GradcheckReport report = check_case(ctx, op_case, seed);
      REQUIRE(!report.worst.empty());
      CAPTURE(report.worst[0].input);
      CAPTURE(report.worst[0].element);
      CHECK(report.max_error() < op_case.tolerance);
      CHECK(ctx.slab().in_use() == 0);
    }
}

TEST_CASE("ops: float32 agrees with float64") {
  const OneThread one_thread;
  Context ctx;
  ctx.poison = true;
  for (const OpCase& op_case : op_cases())
    for (uint64_t seed : {5, 6}) {
      if (op_case.float32_tolerance == 0) continue;
      CAPTURE(op_case.name);
      CAPTURE(seed);
      const OpResults exact = run_case(ctx, op_case, DType::f64, seed);
      CHECK(largest_difference(run_case(ctx, op_case, DType::f32, seed), exact) < op_case.float32_tolerance);
    }
}

TEST_CASE("ops: the same bits for 1 and 2 threads") {
  Context ctx;
  const int threads = omp_get_max_threads();
  for (const OpCase& op_case : op_cases()) {
    CAPTURE(op_case.name);
    omp_set_num_threads(1);
    const OpResults one = run_case(ctx, op_case, DType::f32, 7);
    omp_set_num_threads(2);
    CHECK(run_case(ctx, op_case, DType::f32, 7) == one);
  }
  omp_set_num_threads(threads);
}
