#include "nn/model.h"

#include "autograd/ops_linear.h"
#include "autograd/ops_pointwise.h"

namespace eigentrace {

Var Model::output(Forward& forward, const ModelInput& input) const {
  Var y = widen(features(forward, input));
  const OutputLayer last = output_layer(forward);
  if (last.weight.defined()) y = linear(y, last.weight, last.bias);
  return log_softmax_output() ? log_softmax(y) : y;
}

Loss Model::loss(Forward& forward, const ModelInput& input, const Labels& labels) const {
  const Var x = widen(features(forward, input));
  const OutputLayer last = output_layer(forward);
  forward.tape.set_scope("loss");
  if (!last.weight.defined()) return cross_entropy(x, labels);
  if (per_position()) return vocabulary_head(x, last.weight, last.bias, labels);
  return cross_entropy(linear(x, last.weight, last.bias), labels);
}

std::unique_ptr<Model> make_model(const ModelConfig& config, uint64_t seed, DType dtype, Device device) {
  check(config);
  return std::visit([&](const auto& c) { return make_model(c, seed, dtype, device); }, config);
}

}  // namespace eigentrace
