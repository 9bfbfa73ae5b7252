#include "autograd/op_cases.h"

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

GradcheckReport check_case(Context& ctx, const OpCase& op_case, uint64_t seed) {
  const OpInstance instance = op_case.make(seed, ctx.device());
  ctx.set_step(seed, 3);
  GradcheckOptions options;
  options.seed = seed;
  options.max_elements = 24;
  return gradcheck(ctx, instance.function, instance.inputs, instance.names, options);
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
