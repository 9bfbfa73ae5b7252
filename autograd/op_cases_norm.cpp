#include "autograd/op_cases.h"
#include "autograd/ops_norm.h"
#include "autograd/ops_pointwise.h"
#include "autograd/ops_shape.h"

namespace eigentrace {
namespace {

using Values = std::vector<Var>;

/// x [B, T, D + 1] of which the last D columns are normalised (rows a stride apart), weight and bias [D].
OpCase norm_case(std::string name, Op op, const std::function<Values(const Var& x, const Values& in)>& f,
                 bool bias = true) {
  return {std::move(name), op, [=](uint64_t seed, Device device) {
            Rng rng(seed);
            const int64_t width = odd_size(rng, 100) + 2;  // at width 1 everything is zero, at 2 a sign
            const Shape shape{odd_size(rng, 7), odd_size(rng, 63), width + 1};
            OpInstance instance;
            instance.function = [f, width](Tape&, const Values& in) {
              const Values parts = split(in[0], {1, width});
              Values out = f(parts[1], in);
              out.push_back(scale(parts[0], 3));
              return out;
            };
            instance.inputs = {normal_tensor(rng, shape, device), normal_tensor(rng, {width}, device)};
            instance.names = {"x", "weight"};
            if (bias) {
              instance.inputs.push_back(normal_tensor(rng, {width}, device));
              instance.names.push_back("bias");
            }
            return instance;
          }};
}

/// alone: there is nothing but the branch.
OpCase residual_case(const char* what, double p, bool use_sum, bool use_normed, bool alone = false) {
  OpCase result{std::string("residual_layer_norm: ") + what, Op::residual_layer_norm,
                [=](uint64_t seed, Device device) {
                  Rng rng(seed);
                  const int64_t width = odd_size(rng, 100) + 2;
                  const Shape shape{odd_size(rng, 7), odd_size(rng, 63), width};
                  return OpInstance{
                      [=](Tape&, const Values& in) {
                        const ResidualNorm r =
                            residual_layer_norm(alone ? Var() : in[0], in[1], p, in[2], in[3], 1e-5);
                        Values out{unary(Unary::silu, in[1])};  // the branch is used elsewhere too
                        if (alone) out.push_back(unary(Unary::silu, in[0]));
                        if (use_sum) out.push_back(unary(Unary::silu, r.sum));
                        if (use_normed) out.push_back(unary(Unary::silu, r.normed));
                        return out;
                      },
                      {normal_tensor(rng, shape, device), normal_tensor(rng, shape, device),
                       normal_tensor(rng, {width}, device), normal_tensor(rng, {width}, device)},
                      {"x", "branch", "weight", "bias"}};
                }};
  result.tolerance = 1e-6;
  result.float32_tolerance = 2e-4;
  return result;
}

/// x + glu(both); x goes on elsewhere too.
OpCase glu_case(const char* what, bool use_sum, bool use_normed) {
  return {std::string("residual_layer_norm: of a gated linear unit, ") + what, Op::residual_layer_norm,
          [=](uint64_t seed, Device device) {
            Rng rng(seed);
            const int64_t width = seed % 2 ? 4 * odd_size(rng, 7) : odd_size(rng, 100) + 2;
            const int64_t B = odd_size(rng, 7), T = odd_size(rng, 63);
            return OpInstance{
                [=](Tape&, const Values& in) {
                  const ResidualNorm r = residual_layer_norm_of_glu(in[0], in[1], in[2], in[3], 1e-2);
                  Values out{unary(Unary::silu, in[0])};
                  if (use_sum) out.push_back(unary(Unary::silu, r.sum));
                  if (use_normed) out.push_back(unary(Unary::silu, r.normed));
                  return out;
                },
                {normal_tensor(rng, {B, T, width}, device), normal_tensor(rng, {B, T, 2 * width}, device),
                 normal_tensor(rng, {width}, device), normal_tensor(rng, {width}, device)},
                {"x", "both", "weight", "bias"}};
          }};
}

}  // namespace

std::vector<OpCase> op_cases_norm() {
  std::vector<OpCase> cases;
  cases.push_back(
      norm_case("layer_norm: rows of any stride", Op::layer_norm,
                [](const Var& x, const Values& in) { return Values{layer_norm(x, in[1], in[2], 1e-5)}; }));
  cases.push_back(norm_case("layer_norm: its gradient arrives in parts", Op::layer_norm,
                            [](const Var& x, const Values& in) {
                              const Var y = layer_norm(x, in[1], in[2], 1e-6);
                              const Values parts = split(y, {1, y.dim(2) - 1});
                              return Values{unary(Unary::silu, parts[1]), unary(Unary::exp, x)};
                            }));
  cases.push_back(norm_case("layer_norm: its parameters are used twice", Op::layer_norm,
                            [](const Var& x, const Values& in) {
                              const Var y = layer_norm(x, in[1], in[2], 1e-2);
                              return Values{layer_norm(unary(Unary::silu, y), in[1], in[2], 1e-2)};
                            }));
  cases.push_back(norm_case(
      "rms_norm: rows of any stride", Op::rms_norm,
      [](const Var& x, const Values& in) { return Values{rms_norm(x, in[1], 1e-5)}; }, false));
  cases.push_back(norm_case(
      "batch_norm: training, rows of any stride", Op::batch_norm,
      [](const Var& x, const Values& in) { return Values{batch_norm(x, in[1], in[2], {}, 0.99, 1e-2)}; }));
  cases.push_back(norm_case("batch_norm: evaluation", Op::batch_norm, [](const Var& x, const Values& in) {
    const Device device = x.value().device();
    const std::vector<double> values(static_cast<size_t>(x.dim(2)), 0.7);
    const Tensor statistic =
        Tensor::from(values, {x.dim(2)}, device).clone(device, arithmetic_type(x.dtype()));
    return Values{batch_norm_evaluation(x, in[1], in[2], {statistic, statistic}, 1e-5)};
  }));
  for (const bool joined : {false, true}) {
    OpCase gated{joined ? "batch_norm: of a gate with residual and dropout, whose gradients arrive in parts"
                        : "batch_norm: of a gate",
                 Op::batch_norm, [joined](uint64_t seed, Device device) {
                   Rng rng(seed);
                   const int64_t width = odd_size(rng, 100);
                   const Shape shape{odd_size(rng, 7) + 1, odd_size(rng, 63), width};
                   return OpInstance{
                       [=](Tape&, const Values& in) {
                         const Values parts = split(in[0], {width, width, width});
                         const GateOptions options =
                             joined ? GateOptions{parts[2], 0.3, DropoutMask::shared_over_time}
                                    : GateOptions{};
                         const Var y = gated_batch_norm(joined ? Unary::sigmoid : Unary::silu, parts[0],
                                                        parts[1], options, in[1], in[2], {}, 0.99, 1e-2);
                         return Values{unary(Unary::silu, y), unary(Unary::silu, parts[2])};
                       },
                       {normal_tensor(rng, {shape[0], shape[1], 3 * width}, device),
                        normal_tensor(rng, {width}, device), normal_tensor(rng, {width}, device)},
                       {"a, z and residual", "weight", "bias"}};
                 }};
    cases.push_back(std::move(gated));
  }
  cases.push_back(residual_case("sum and normed go on", 0, true, true));
  cases.push_back(residual_case("the sum alone goes on", 0, true, false));
  cases.push_back(residual_case("normed alone goes on", 0, false, true));
  cases.push_back(residual_case("the branch dropped out", 0.3, true, true));
  cases.push_back(residual_case("the branch dropped out, the sum alone goes on", 0.3, true, false));
  cases.push_back(residual_case("the branch alone, dropped out", 0.3, true, true, true));
  cases.push_back(glu_case("sum and normed go on", true, true));
  cases.push_back(glu_case("the sum alone goes on", true, false));
  cases.push_back(glu_case("normed alone goes on", false, true));
  for (OpCase& op_case : cases) op_case.tolerance = 1e-6, op_case.float32_tolerance = 2e-4;
  return cases;
}

}  // namespace eigentrace
