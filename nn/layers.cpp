// The layers of module.h.
#include <cmath>

#include "autograd/ops_linear.h"
#include "autograd/ops_loss.h"
#include "autograd/ops_norm.h"
#include "autograd/ops_sequence.h"
#include "autograd/ops_shape.h"
#include "nn/module.h"

namespace eigentrace {

Var Forward::wanted_rows(int layer, const Var& x) const {
  const Labels* const rows = wanted(layer);
  return rows ? labelled_rows(x, *rows) : x;
}

Linear::Linear(ParameterList& list, const std::string& name, int64_t in, int64_t out, bool with_bias) {
  const double bound = 1.0 / std::sqrt(static_cast<double>(in));
  weight = list.add(name + ".weight", {out, in}, init_uniform(bound));
  if (with_bias) bias = list.add(name + ".bias", {out}, init_uniform(bound));
}

Var Linear::operator()(const Forward& forward, const Var& x) const {
  return linear(x, forward(weight), forward(bias));
}

DenseLayer::DenseLayer(ParameterList& list, const std::string& name, int64_t in, int64_t out) {
  kernel = list.add(name + ".kernel", {in, out}, init_lecun_normal(in));
  bias = list.add(name + ".bias", {out}, init_constant(0));
}

Var DenseLayer::operator()(const Forward& forward, const Var& x) const {
  return linear(x, transpose(forward(kernel), 0, 1), forward(bias));
}

ShortConvolution::ShortConvolution(ParameterList& list, const std::string& name, int64_t channels,
                                   int64_t taps) {
  if (taps == 0) return;
  const double bound = 1.0 / std::sqrt(static_cast<double>(taps));
  weight = list.add(name + ".weight", {channels, 1, taps}, init_uniform(bound));
  bias = list.add(name + ".bias", {channels}, init_uniform(bound));
}

Var ShortConvolution::operator()(const Forward& forward, const Var& x) const {
  return weight ? causal_conv1d(x, forward(weight), forward(bias), true) : x;
}

LayerNorm::LayerNorm(ParameterList& list, const std::string& name, int64_t width, double eps,
                     const char* weight_name)
    : epsilon(eps) {
  weight = list.add(name + "." + weight_name, {width}, init_constant(1));
  bias = list.add(name + ".bias", {width}, init_constant(0));
}

Var LayerNorm::operator()(const Forward& forward, const Var& x) const {
  return layer_norm(x, forward(weight), forward(bias), epsilon);
}

}  // namespace eigentrace
