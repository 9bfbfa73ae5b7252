// The table of op cases on the GPU (or its emulation): the CPU's values, gradients by differences, the same
// bits twice, no read of what nothing wrote.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "autograd/op_cases.h"
#include "tensor/error.h"

using namespace eigentrace;

namespace {

using Values = std::vector<std::vector<double>>;

/// Values, then gradients, of a case with fixed random cotangents, computed in `dtype`.
Values run(Context& ctx, const OpCase& op_case, DType dtype, uint64_t seed) {
  const OpInstance instance = op_case.make(seed, ctx.device());
  ctx.set_step(seed, 3);
  Tape tape(ctx);
  std::vector<Var> leaves;
  for (const Tensor& input : instance.inputs) leaves.push_back(tape.leaf(input.clone(ctx.device(), dtype)));
  Values results;
  const std::vector<Var> outputs = instance.function(tape, leaves);
  std::vector<Tensor> cotangents;
  Rng rng(seed, 1);
  for (const Var& output : outputs) {
    cotangents.push_back(normal_tensor(rng, output.shape(), {}).clone(ctx.device(), dtype));
    results.push_back(output.value().to_vector<double>());
  }
  tape.backward(outputs, cotangents);
  for (const Var& leaf : leaves) results.push_back(tape.gradient_of(leaf).to_vector<double>());
  return results;
}

double difference(const Values& x, const Values& y) {
  double all = 0;
  for (size_t k = 0; k < y.size(); ++k) {
    double scale = 1, worst = 0;
    for (size_t i = 0; i < y[k].size(); ++i) {
      scale = std::max(scale, std::abs(y[k][i]));
      const double d = std::abs(x[k][i] - y[k][i]);
      worst = d <= worst ? worst : d;  // NaN is the worst there is
    }
    all = worst / scale <= all ? all : worst / scale;
  }
  return all;
}

bool gpu_here() {
  if (cuda_device_count() > 0) return true;
  MESSAGE("no GPU here: this case needs one");
  return false;
}

Context poisoned(Device device) {
  Context ctx(device, device.is_cuda() ? size_t{256} << 20 : 0);
  ctx.poison = true;
  return ctx;
}

}  // namespace

TEST_CASE("cuda ops: every op gives the CPU's values and gradients") {
  if (!gpu_here()) return;
  Context cpu = poisoned({}), gpu = poisoned(parse_device("cuda"));
  for (const OpCase& op_case : op_cases())
    for (uint64_t seed : {1, 2, 3}) {
      CAPTURE(op_case.name);
      CAPTURE(seed);
      try {
        const Values exact = run(cpu, op_case, DType::f64, seed);
        CHECK(difference(run(gpu, op_case, DType::f64, seed), exact) < 1e-10);
        if (op_case.float32_tolerance > 0)
          CHECK(difference(run(gpu, op_case, DType::f32, seed), exact) < op_case.float32_tolerance);
        CHECK(gpu.slab().in_use() == 0);
      } catch (const Error& error) {
        FAIL_CHECK(std::string(error.what()));
      }
    }
}

TEST_CASE("cuda ops: two runs give the same bits") {
  if (!gpu_here()) return;
  Context gpu = poisoned(parse_device("cuda"));
  for (const OpCase& op_case : op_cases()) {
    CAPTURE(op_case.name);
    try {
      CHECK(run(gpu, op_case, DType::f32, 7) == run(gpu, op_case, DType::f32, 7));
    } catch (const Error& error) {
      FAIL_CHECK(std::string(error.what()));
    }
  }
}

TEST_CASE("cuda ops: gradients agree with central differences" * doctest::skip(cuda_is_emulated())) {
  if (!gpu_here()) return;
  Context gpu = poisoned(parse_device("cuda"));
  for (const OpCase& op_case : op_cases()) {
    CAPTURE(op_case.name);
    try {
      CHECK(check_case(gpu, op_case, 1).max_error() < op_case.tolerance);
    } catch (const Error& error) {
      FAIL_CHECK(std::string(error.what()));
    }
  }
}
