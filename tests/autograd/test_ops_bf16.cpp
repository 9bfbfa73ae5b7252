// The table of op cases with bf16 activations on the GPU (or its emulation) against the CPU's float64: the
// inputs that are activations are bf16 in both, parameters and numbers per head float32 in the first.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "autograd/op_cases.h"
#include "autograd/ops_pointwise.h"
#include "tensor/kernels.h"
#include "tensor/worse.h"

using namespace eigentrace;

namespace {

/// Ops whose first so many inputs are activations; what is not here has none.
const std::map<Op, size_t> activations_of = {{Op::cast, 9},
                                             {Op::reshape, 9},
                                             {Op::transpose, 9},
                                             {Op::split, 9},
                                             {Op::concat, 9},
                                             {Op::unary, 9},
                                             {Op::binary, 9},
                                             {Op::scale, 9},
                                             {Op::dropout, 9},
                                             {Op::activation, 9},
                                             {Op::glu, 9},
                                             {Op::gate, 9},
                                             {Op::sum, 9},
                                             {Op::layer_norm, 1},
                                             {Op::residual_layer_norm, 2},
                                             {Op::rms_norm, 1},
                                             {Op::batch_norm, 1},
                                             {Op::linear, 1},
                                             {Op::matmul, 9},
                                             {Op::causal_conv1d, 1},
                                             {Op::pool, 9},
                                             {Op::reverse_time, 9},
                                             {Op::softmax_attention, 9},
                                             {Op::ssd, 3},
                                             {Op::attention_normaliser, 2},
                                             {Op::divide_by_eta, 1},
                                             {Op::norm_scale, 1},
                                             {Op::diagonal_scan, 1},
                                             {Op::linear_attention, 9},
                                             {Op::norm_attention, 3},
                                             {Op::fft_convolution, 1},
                                             {Op::channel_skip, 2},
                                             {Op::channel_skip_activation, 2}};

struct Results {
  std::vector<std::vector<double>> values;
  std::vector<DType> types;
};

/// Values, then gradients; inputs rounded to bf16 where they are activations, and of that type if `narrow`.
Results run(Context& ctx, const OpCase& op_case, uint64_t seed, bool narrow) {
  const OpInstance instance = op_case.make(seed, ctx.device());
  const size_t count = activations_of.at(op_case.op);
  ctx.set_step(seed, 3);
  Tape tape(ctx);
  std::vector<Var> leaves;
  for (size_t i = 0; i < instance.inputs.size(); ++i) {
    std::vector<double> values = instance.inputs[i].to_vector<double>();
    if (i < count)
      for (double& x : values) x = BFloat16(static_cast<float>(x));
    const DType type = !narrow ? DType::f64 : i < count ? DType::bf16 : DType::f32;
    leaves.push_back(tape.leaf(Tensor::from(values, instance.inputs[i].shape()).clone(ctx.device(), type)));
  }
  Results results;
  const std::vector<Var> outputs = instance.function(tape, leaves);
  std::vector<Tensor> cotangents;
  Rng rng(seed, 1);
  for (const Var& output : outputs) {
    std::vector<double> dy = normal_tensor(rng, output.shape(), {}).to_vector<double>();
    for (double& x : dy) x = BFloat16(static_cast<float>(x));
    cotangents.push_back(Tensor::from(dy, output.shape()).clone(ctx.device(), output.dtype()));
    results.values.push_back(output.value().to_vector<double>());
    results.types.push_back(output.dtype());
  }
  tape.backward(outputs, cotangents);
  for (const Var& leaf : leaves) {
    results.values.push_back(tape.gradient_of(leaf).to_vector<double>());
    results.types.push_back(tape.gradient_of(leaf).dtype());
  }
  return results;
}

}  // namespace

TEST_CASE("bf16 ops: every op with activations gives float64's values and gradients to bf16's accuracy") {
  if (cuda_device_count() == 0) {
    MESSAGE("no GPU here: this case needs one");
    return;
  }
  Context cpu({}, 0), gpu(parse_device("cuda"), size_t{256} << 20);
  cpu.poison = gpu.poison = true, gpu.precision = Precision::bf16;
  for (const OpCase& op_case : op_cases()) {
    if (!activations_of.contains(op_case.op) || op_case.float32_tolerance == 0) continue;
    for (uint64_t seed : {1, 2}) {
      CAPTURE(op_case.name);
      CAPTURE(seed);
      const Results exact = run(cpu, op_case, seed, false), rounded = run(gpu, op_case, seed, true);
      CHECK(gpu.slab().in_use() == 0);
      REQUIRE(exact.values.size() == rounded.values.size());
      for (size_t k = 0; k < exact.values.size(); ++k) {
        double scale = 1, worst = 0;
        for (size_t i = 0; i < exact.values[k].size(); ++i) {
          scale = std::max(scale, std::abs(exact.values[k][i]));
          const double d = std::abs(rounded.values[k][i] - exact.values[k][i]);
          worst = worse(worst, d);
        }
        CAPTURE(k);
        CAPTURE(scale);
        // the result's rounding, and that of what is kept or passed on between; log a's gradient is a sum
        // that cancels
        CHECK(worst / scale < (op_case.op == Op::ssd ? 1.0 / 32 : 1.0 / 64));
      }
      CHECK(run(gpu, op_case, seed, true).values == rounded.values);
    }
  }
}

TEST_CASE("bf16 ops: a cast rounds to nearest even, and its gradient comes back through it") {
  const auto rounded = [](float x) { return static_cast<float>(BFloat16(x)); };
  CHECK(rounded(1.0f) == 1.0f);
  CHECK(rounded(1.00390625f) == 1.0f);       // halfway, the lower is even
  CHECK(rounded(1.01171875f) == 1.015625f);  // halfway, the upper is even
  CHECK(rounded(1.0039064f) == 1.0078125f);  // above halfway
  CHECK(rounded(-3.0e38f) == doctest::Approx(-3.0e38).epsilon(4e-3));
  CHECK(rounded(3.4e38f) == INFINITY);                            // beyond the largest
  CHECK(rounded(1e-40f) == doctest::Approx(1e-40).epsilon(0.5));  // subnormal
  CHECK(std::isnan(rounded(NAN)));
  if (cuda_device_count() == 0) return;
  const Device device = parse_device("cuda");
  Context ctx(device, size_t{64} << 20);
  ctx.poison = true;
  Rng rng(4);
  for (const Shape& shape : {Shape{1}, Shape{63}, Shape{7, 100}, Shape{3, 40, 16}, Shape{4100}}) {
    std::vector<float> values(static_cast<size_t>(shape.numel())), expected;
    for (float& x : values) x = static_cast<float>(rng.normal());
    for (float x : values) expected.push_back(rounded(x));
    Tape tape(ctx);
    const Var x = tape.leaf(Tensor::from(values, shape, device));
    const Var y = cast(x, DType::bf16), z = widen(y);
    CHECK(y.value().bytes() == x.value().bytes() / 2);
    CHECK(y.value().to_vector<float>() == expected);
    CHECK(z.value().to_vector<float>() == expected);
    const Tensor cotangent = Tensor::from(values, shape, device);
    tape.backward(std::span(&z, 1), std::span(&cotangent, 1));
    CHECK(tape.gradient_of(x).to_vector<float>() == expected);
  }
}
