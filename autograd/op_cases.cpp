#include "autograd/op_cases.h"

#include <algorithm>
#include <cmath>
#include <iterator>

namespace eigentrace {

std::vector<OpCase> op_cases() {
  std::vector<OpCase> all;
  for (auto* theme : {op_cases_shape, op_cases_pointwise, op_cases_norm, op_cases_sequence, op_cases_scan,
                      op_cases_matrix, op_cases_attention, op_cases_loss}) {
    std::vector<OpCase> cases = theme();
    all.insert(all.end(), std::make_move_iterator(cases.begin()), std::make_move_iterator(cases.end()));
  }
  return all;
}

double operand_rounding(Precision precision) {
  return precision == Precision::tf32 ? 0x1p-11 : precision == Precision::bf16 ? 0x1p-9 : 0;
}

double OpCase::bound(Precision precision) const {
  return float32_tolerance + 16 * operand_rounding(precision);
}

GradcheckReport check_case(Context& ctx, const OpCase& op_case, uint64_t seed) {
  const OpInstance instance = op_case.make(seed, ctx.device());
  ctx.set_step(seed, 3);
  GradcheckOptions options;
  options.seed = seed;
  options.max_elements = 24;
  return gradcheck(ctx, instance.function, instance.inputs, instance.names, options);
}

OpResults run_case(Context& ctx, const OpCase& op_case, DType dtype, uint64_t seed) {
  const OpInstance instance = op_case.make(seed, ctx.device());
  ctx.set_step(seed, 3);
  Tape tape(ctx);
  std::vector<Var> leaves;
  for (const Tensor& input : instance.inputs) leaves.push_back(tape.leaf(input.clone(ctx.device(), dtype)));
  OpResults results;
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

double largest_difference(const OpResults& found, const OpResults& exact) {
  if (found.size() != exact.size()) return HUGE_VAL;
  double all = 0;
  for (size_t k = 0; k < exact.size(); ++k) {
    if (found[k].size() != exact[k].size()) return HUGE_VAL;
    double scale = 1, worst = 0;
    for (size_t i = 0; i < exact[k].size(); ++i) {
      scale = std::max(scale, std::abs(exact[k][i]));
      const double d = std::abs(found[k][i] - exact[k][i]);
      worst = d <= worst ? worst : std::isnan(d) ? HUGE_VAL : d;
    }
    all = std::max(all, worst / scale);
  }
  return all;
}

Tensor normal_tensor(Rng& rng, const Shape& shape, Device device) {
  std::vector<double> values(static_cast<size_t>(shape.numel()));
  for (double& v : values) v = rng.normal();
  return Tensor::from(values, shape, device);
}

Tensor uniform_tensor(Rng& rng, const Shape& shape, double low, double high, Device device) {
  std::vector<double> values(static_cast<size_t>(shape.numel()));
  for (double& v : values) v = rng.uniform(low, high);
  return Tensor::from(values, shape, device);
}

int64_t odd_size(Rng& rng, int64_t most) {
  constexpr int64_t sizes[] = {1, 2, 7, 63, 100};
  uint32_t fitting = 1;
  while (fitting < 5 && sizes[fitting] <= most) ++fitting;
  return sizes[rng.below(fitting)];
}

}  // namespace eigentrace
