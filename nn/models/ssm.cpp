// The time-invariant families S4, S5 and LRU: encoder → layers → pooling → decoder, log-softmax last.
//
//   prenorm    x + act(seq(normalize(x)))
//   postnorm   normalize(x + act(seq(x)))
//   act, y the mixer's output, g = drop(gelu(y)), gelu in its tanh form, masks shared over time:
//     full_glu   drop(out1(g) σ(out2(g)))       half_glu1   drop(g σ(out2(g)))
//     half_glu2  drop(y σ(out2(g)))             gelu        g
#include "autograd/ops_linear.h"
#include "autograd/ops_norm.h"
#include "autograd/ops_pointwise.h"
#include "autograd/ops_shape.h"
#include "nn/mixers/lru.h"
#include "nn/mixers/s4.h"
#include "nn/mixers/s5.h"
#include "nn/model.h"
#include "tensor/error.h"

namespace eigentrace {
namespace {

/// BatchNorm over batch and time, or LayerNorm, under `name`.scale (1) and `name`.bias (0).
class Normalize {
 public:
  Normalize(ParameterList& list, const std::string& name, const SsmConfig& c)
      : layer_(list, name, c.hidden_dim, 1e-6, "scale") {
    if (c.norm != NormKind::batch) return;
    mean_ = list.add_buffer(name + ".mean", {c.hidden_dim}, 0);
    var_ = list.add_buffer(name + ".var", {c.hidden_dim}, 1);
  }
  Var operator()(const Forward& forward, const Var& x) const {
    if (!mean_) return layer_(forward, x);
    const RunningStatistics running{mean_->value, var_->value};
    const Var weight = forward(layer_.weight), bias = forward(layer_.bias);
    return forward.batch_statistics ? batch_norm(x, weight, bias, running, 0.99, 1e-5)
                                    : batch_norm_evaluation(x, weight, bias, running, 1e-5);
  }
  /// Of a σ(z) and what joins it.
  Var gated(const Forward& forward, const Var& a, const Var& z, const GateOptions& options) const {
    if (!mean_ || !forward.batch_statistics) return (*this)(forward, gate(Unary::sigmoid, a, z, options));
    return gated_batch_norm(Unary::sigmoid, a, z, options, forward(layer_.weight), forward(layer_.bias),
                            {mean_->value, var_->value}, 0.99, 1e-5);
  }

 private:
  LayerNorm layer_;
  Buffer *mean_ = nullptr, *var_ = nullptr;
};

std::unique_ptr<Mixer> make_mixer(ParameterList& list, const std::string& name, const SsmConfig& c) {
  switch (c.layer) {
    case SsmKind::s4:
      return make_s4(list, name, c);
    case SsmKind::s5:
      return make_s5(list, name, c);
    case SsmKind::lru:
      return make_lru(list, name, c);
  }
  return nullptr;
}

class Layer {
 public:
  Layer(ParameterList& list, const std::string& name, const SsmConfig& c)
      : scope_(name),
        activation_(c.activation),
        prenorm_(c.prenorm),
        rate_(c.dropout),
        normalize_(list, name + ".normalize", c),
        mixer_(make_mixer(list, name + ".seq", c)) {
    if (activation_ == SsmActivation::full_glu)
      out1_ = DenseLayer(list, name + ".out1", c.hidden_dim, c.hidden_dim);
    if (activation_ != SsmActivation::gelu)
      out2_ = DenseLayer(list, name + ".out2", c.hidden_dim, c.hidden_dim);
  }
  const Mixer* mixer() const { return mixer_.get(); }

  Var operator()(Forward& forward, int layer, const Var& x) const {
    forward.tape.set_scope(scope_);
    const Var in = prenorm_ ? normalize_(forward, x) : x;
    const Activation gelu{Unary::gelu_tanh, forward.rate(rate_), DropoutMask::shared_over_time};
    Var y, g;
    if (activation_ == SsmActivation::half_glu2) {  // the only one that uses y itself
      y = (*mixer_)(forward, layer, in);
      g = activation(gelu.f, y, gelu.dropout, gelu.mask);
    } else {
      g = (*mixer_)(forward, layer, in, &gelu);
    }
    return activate(forward, y, g, x);
  }

 private:
  /// x + act(y), normalised if this layer's norm comes last.
  Var activate(const Forward& forward, const Var& y, const Var& g, const Var& x) const {
    const double rate = forward.rate(rate_);
    constexpr DropoutMask mask = DropoutMask::shared_over_time;
    const auto gated = [&](const Var& a, const Var& z) {
      const GateOptions options{x, rate, mask};
      return prenorm_ ? gate(Unary::sigmoid, a, z, options) : normalize_.gated(forward, a, z, options);
    };
    switch (activation_) {
      case SsmActivation::full_glu: {  // both projections in one product
        const std::vector<Var> joined = concat_each(
            {{forward(out1_.kernel), forward(out2_.kernel)}, {forward(out1_.bias), forward(out2_.bias)}});
        const Var both = linear(g, transpose(joined[0], 0, 1), joined[1]);
        const std::vector<Var> halves = split(both, {both.dim(-1) / 2, both.dim(-1) / 2});
        return gated(halves[0], halves[1]);
      }
      case SsmActivation::half_glu1:
        return gated(g, out2_(forward, g));
      case SsmActivation::half_glu2:
        return gated(y, out2_(forward, g));
      case SsmActivation::gelu:
        break;
    }
    return prenorm_ ? add(x, g) : normalize_(forward, add(x, g));
  }

  std::string scope_;
  SsmActivation activation_;
  bool prenorm_;
  double rate_;
  Normalize normalize_;
  std::unique_ptr<Mixer> mixer_;
  DenseLayer out1_, out2_;
};

class Ssm final : public Model {
 public:
  Ssm(const SsmConfig& c, uint64_t seed, DType dtype, Device device)
      : Model(c, ParameterList(seed, dtype, device)), c_(c) {
    ParameterList& list = parameters_;
    encoder_ = DenseLayer(list, "encoder.encoder", c.input_dim, c.hidden_dim);
    for (int64_t l = 0; l < c.num_layers; ++l)
      layers_.emplace_back(list, "encoder.layers_" + std::to_string(l), c);
    decoder_ = DenseLayer(list, "decoder", c.hidden_dim, c.output_dim);
  }

  Var features(Forward& forward, const ModelInput& input) const override {
    forward.tape.set_scope("encoder");
    Var x = encode(forward, input);
    int index = 0;
    for (const Layer& layer : layers_) {
      x = layer(forward, index, x);
      if (forward.on_block) forward.on_block(index, x);
      ++index;
    }
    forward.tape.set_scope("head");
    if (c_.pooling == PoolKind::none) return x;
    if (c_.pooling == PoolKind::mean) return pool(x, Pooling::mean, input.lengths, input.valid_time);
    if (input.lengths.defined())
      fail_usage("model.pooling: last has no meaning for padded sequences; use mean");
    return pool(x, Pooling::last, {}, input.valid_time);
  }
  OutputLayer output_layer(const Forward& forward) const override {
    return {transpose(forward(decoder_.kernel), 0, 1), forward(decoder_.bias)};
  }
  std::vector<const Mixer*> mixers() const override {
    std::vector<const Mixer*> all;
    for (const Layer& layer : layers_) all.push_back(layer.mixer());
    return all;
  }
  bool per_position() const override { return c_.pooling == PoolKind::none; }
  bool log_softmax_output() const override { return true; }

 private:
  /// Tokens enter as one-hot vectors: a Dense layer of them is a row of its kernel plus the bias.
  Var encode(Forward& forward, const ModelInput& input) const {
    if (input.tokens.ids.defined())
      return embedding(forward(encoder_.kernel), input.tokens, {}, forward(encoder_.bias));
    return encoder_(forward, activations(forward.tape.constant(input.values)));
  }

  SsmConfig c_;
  DenseLayer encoder_, decoder_;
  std::vector<Layer> layers_;
};

}  // namespace

std::unique_ptr<Model> make_model(const SsmConfig& config, uint64_t seed, DType dtype, Device device) {
  return std::make_unique<Ssm>(config, seed, dtype, device);
}

}  // namespace eigentrace
