#include "nn/model.h"

#include "autograd/ops_linear.h"
#include "autograd/ops_pointwise.h"

namespace eigentrace {

namespace {

int64_t positions(const ModelInput& input) {
  const Tensor& x = input.tokens.ids.defined() ? input.tokens.ids : input.values;
  return x.dim(0) * x.dim(1);
}

}  // namespace

Var Model::output(Forward& forward, const ModelInput& input) const {
  Var y = widen(features(forward, input));
  const OutputLayer last = output_layer(forward);
  if (last.weight.defined()) y = linear(y, last.weight, last.bias);
  return log_softmax_output() ? log_softmax(y) : y;
}

Loss Model::loss(Forward& forward, const ModelInput& input, const Labels& labels) const {
  const bool some = leaves_rows_out() && per_position() && 2 * labels.rows.numel() <= positions(input) &&
                    !forward.on_mixer_output && !forward.on_block;
  if (some) forward.only = &labels, forward.last = static_cast<int>(mixers().size()) - 1;
  const Var x = widen(features(forward, input));
  forward.only = nullptr;
  const OutputLayer last = output_layer(forward);
  forward.tape.set_scope("loss");
  if (!last.weight.defined()) return cross_entropy(x, labels);
  if (some)
    return vocabulary_head(x, last.weight, last.bias, {{}, labels.labels, labels.weights, labels.count});
  if (per_position()) return vocabulary_head(x, last.weight, last.bias, labels);
  return cross_entropy(linear(x, last.weight, last.bias), labels);
}

std::unique_ptr<Model> make_model(const ModelConfig& config, uint64_t seed, DType dtype, Device device) {
  check(config);
  return std::visit([&](const auto& c) { return make_model(c, seed, dtype, device); }, config);
}

}  // namespace eigentrace
