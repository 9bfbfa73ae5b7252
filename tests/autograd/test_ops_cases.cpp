// What is asked of every op alike, over the table of cases.
#include <doctest/doctest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "autograd/op_cases.h"

using namespace eigentrace;

namespace {

struct Run {
  std::vector<std::vector<double>> values, gradients;
};

/// Values and gradients of a case with fixed random cotangents, computed in `dtype`.
Run run(Context& ctx, const OpCase& op_case, DType dtype, uint64_t seed) {
  const OpInstance instance = op_case.make(seed, ctx.device());
  ctx.set_step(seed, 3);
  Tape tape(ctx);
  std::vector<Var> leaves;
  for (const Tensor& input : instance.inputs) leaves.push_back(tape.leaf(input.clone(ctx.device(), dtype)));
  Run result;
  const std::vector<Var> outputs = instance.function(tape, leaves);
  std::vector<Tensor> cotangents;
  Rng rng(seed, 1);
  for (const Var& output : outputs) {
    cotangents.push_back(normal_tensor(rng, output.shape(), ctx.device()).clone(ctx.device(), dtype));
    result.values.push_back(output.value().to_vector<double>());
  }
  tape.backward(outputs, cotangents);
  for (const Var& leaf : leaves) result.gradients.push_back(tape.gradient_of(leaf).to_vector<double>());
  return result;
}

/// Tiny cases run fastest on one thread; the last test compares numbers of threads.
struct OneThread {
  int threads = omp_get_max_threads();
  OneThread() { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(threads); }
};

double difference(const std::vector<double>& x, const std::vector<double>& y) {
  double scale = 1, worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    scale = std::max(scale, std::abs(y[i]));
    const double d = std::abs(x[i] - y[i]);
    worst = d <= worst ? worst : d;  // NaN is the worst there is
  }
  return worst / scale;
}

}  // namespace

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
      const Run single = run(ctx, op_case, DType::f32, seed), exact = run(ctx, op_case, DType::f64, seed);
      for (size_t i = 0; i < exact.values.size(); ++i)
        CHECK(difference(single.values[i], exact.values[i]) < op_case.float32_tolerance);
      for (size_t i = 0; i < exact.gradients.size(); ++i)
        CHECK(difference(single.gradients[i], exact.gradients[i]) < op_case.float32_tolerance);
    }
}

TEST_CASE("ops: the same bits for 1 and 2 threads") {
  Context ctx;
  const int threads = omp_get_max_threads();
  for (const OpCase& op_case : op_cases()) {
    CAPTURE(op_case.name);
    omp_set_num_threads(1);
    const Run one = run(ctx, op_case, DType::f32, 7);
    omp_set_num_threads(2);
    const Run two = run(ctx, op_case, DType::f32, 7);
    CHECK(one.values == two.values);
    CHECK(one.gradients == two.gradients);
  }
  omp_set_num_threads(threads);
}
