// The transformer family: encoder → dropout → blocks → LayerNorm → head.
//
// A block has one LayerNorm, used twice:
//   z = Wz x                                  (use_gate)
//   s = x + dropout(attention(norm(x)))
//   y = s + mixer(norm(s)), or norm(s) alone where the mixer is none
//   y = y · silu(z)                           (use_gate)
#include <cmath>

#include "autograd/ops_linear.h"
#include "autograd/ops_pointwise.h"
#include "autograd/ops_shape.h"
#include "nn/mixers/attention.h"
#include "nn/model.h"
#include "nn/models/stream.h"
#include "tensor/error.h"

namespace eigentrace {
namespace {

/// What acts on each position alone. Its last dropout is left to the stream.
class ChannelMixer {
 public:
  ChannelMixer(ParameterList& list, const std::string& name, const TransformerConfig& c)
      : kind_(c.mixer), rate_(c.dropout) {
    const int64_t width = c.hidden_dim;
    if (kind_ == MixerKind::mlp) {
      encoder_ = Linear(list, name + ".encoder", width, c.mixer_dim);
      decoder_ = Linear(list, name + ".decoder", c.mixer_dim, width);
    } else if (kind_ == MixerKind::glu) {
      encoder_ = Linear(list, name + ".linear", width, 2 * width);
    } else if (kind_ == MixerKind::hybrid) {
      alpha_ = list.add(name + ".alpha", {1}, init_constant(-std::log(1 / 0.2 - 1)));
      encoder_ = Linear(list, name + ".encoder", width, 2 * width);
      decoder_ = Linear(list, name + ".decoder", 2 * width, width);
    }
  }
  /// The branch added to `sum`, or for mixer none the normed value alone.
  Stream operator()(const Forward& forward, const ResidualNorm& s) const {
    const double rate = forward.rate(rate_);
    if (kind_ == MixerKind::none) return {s.normed, {}, 0};
    const Var e = encoder_(forward, s.normed);
    if (kind_ == MixerKind::glu) return {s.sum, glu(e), 0};
    const Var y = decoder_(forward, activation(Unary::gelu, e, rate));
    if (kind_ == MixerKind::mlp) return {s.sum, y, rate};
    const Var a = unary(Unary::sigmoid, forward(alpha_));  // a glu(e) + (1 − a) y
    return {s.sum, activations(add(y, mul(a, sub(glu(e), y)))), rate};
  }

 private:
  MixerKind kind_;
  double rate_;
  Parameter* alpha_ = nullptr;
  Linear encoder_, decoder_;
};

class Block {
 public:
  Block(ParameterList& list, const std::string& name, const TransformerConfig& c)
      : gated_(c.use_gate),
        rate_(c.dropout),
        scope_(name),
        norm_(list, name + ".norm", c.hidden_dim),
        attention_(make_attention(list, name + ".attention", c)),
        mixer_(list, name + ".mixer", c) {
    if (!gated_) return;
    const double bound = 0.1 * std::sqrt(6.0 / static_cast<double>(2 * c.hidden_dim));
    gate_.weight = list.add(name + ".Wz.weight", {c.hidden_dim, c.hidden_dim}, init_uniform(bound));
    gate_.bias = list.add(name + ".Wz.bias", {c.hidden_dim}, init_constant(1));
  }
  const Mixer* attention() const { return attention_.get(); }

  Stream operator()(Forward& forward, int layer, const Stream& in) const {
    forward.tape.set_scope(scope_ + ".attention");
    const ResidualNorm before = norm_of(forward, norm_, in);
    const Var z = gated_ ? gate_(forward, before.sum) : Var();
    const Var attended = (*attention_)(forward, layer, before.normed);
    forward.tape.set_scope(scope_ + ".mixer");
    const Var sum = forward.wanted_rows(layer, before.sum);
    const ResidualNorm between = norm_of(forward, norm_, {sum, attended, forward.rate(rate_)});
    Stream out = mixer_(forward, between);
    if (gated_) out = {gate(Unary::silu, sum_of(out), z), {}, 0};
    if (forward.on_block) {
      out = {sum_of(out), {}, 0};
      forward.on_block(layer, out.x);
    }
    return out;
  }

 private:
  bool gated_;
  double rate_;
  std::string scope_;
  LayerNorm norm_;
  std::unique_ptr<Mixer> attention_;
  ChannelMixer mixer_;
  Linear gate_;
};

Pooling pooling_of(PoolKind kind) {
  switch (kind) {
    case PoolKind::mean:
      return Pooling::mean;
    case PoolKind::max:
      return Pooling::max;
    case PoolKind::sum:
      return Pooling::sum;
    case PoolKind::cls:
      return Pooling::first;
    case PoolKind::last:
      return Pooling::last;
    case PoolKind::none:
      break;
  }
  fail("pooling_of: none does not pool");
}

class Transformer final : public Model {
 public:
  Transformer(const TransformerConfig& c, uint64_t seed, DType dtype, Device device)
      : Model(c, ParameterList(seed, dtype, device)), c_(c) {
    ParameterList& list = parameters_;
    const int64_t width = c.hidden_dim;
    if (c.embedding) {
      table_ = list.add("encoder.word_embeddings.weight", {c.vocab_size, width}, init_normal(1));
      if (c.max_pos_embed > 0)
        positions_ = list.add("encoder.position_embeddings.weight", {c.max_pos_embed, width}, init_normal(1));
    } else {
      encoder_ = Linear(list, "encoder", c.input_dim, width);
    }
    for (int64_t l = 0; l < c.num_layers; ++l) blocks_.emplace_back(list, "layers." + std::to_string(l), c);
    norm_ = LayerNorm(list, "norm", width);
    if (!c.classifier) {
      last_ = Linear(list, "decoder", width, c.output_dim, false);
    } else if (c.mixer_dim > 0) {
      class_encoder_ = Linear(list, "classifier.encoder", width, c.mixer_dim);
      last_ = Linear(list, "classifier.decoder", c.mixer_dim, c.output_dim);
    }
    if (!c.dual) return;
    class_decoder_ = last_;
    match_encoder_ = Linear(list, "match.encoder", 2 * c.output_dim, c.mixer_dim);
    match_middle_ = Linear(list, "match.middle", c.mixer_dim, c.mixer_dim / 2);
    last_ = Linear(list, "match.decoder", c.mixer_dim / 2, c.output_dim);
  }

  Var features(Forward& forward, const ModelInput& input) const override {
    forward.tape.set_scope("encoder");
    const double rate = forward.encoder_dropout ? forward.rate(c_.dropout) : 0.0;
    Stream stream{encode(forward, input), {}, 0};
    if (rate > 0) stream = {{}, stream.x, rate};
    int layer = 0;
    for (const Block& block : blocks_) stream = block(forward, layer++, stream);
    forward.tape.set_scope("head");
    Var x = norm_of(forward, norm_, stream).normed;
    if (!c_.classifier) return x;
    if (c_.pooling != PoolKind::none) x = pool(x, pooling_of(c_.pooling), {}, input.valid_time);
    if (c_.mixer_dim > 0) x = unary(Unary::relu, class_encoder_(forward, x));
    return c_.dual ? match(forward, class_decoder_(forward, x)) : x;
  }
  OutputLayer output_layer(const Forward& forward) const override {
    return {forward(last_.weight), forward(last_.bias)};
  }
  std::vector<const Mixer*> mixers() const override {
    std::vector<const Mixer*> all;
    for (const Block& block : blocks_) all.push_back(block.attention());
    return all;
  }
  bool per_position() const override { return !c_.classifier || c_.pooling == PoolKind::none; }
  bool leaves_rows_out() const override { return !c_.use_gate && !c_.dual; }

 private:
  Var encode(Forward& forward, const ModelInput& input) const {
    if (c_.embedding) {
      if (!input.tokens.ids.defined())
        fail("transformer: input: expected tokens (embedding is True), found floats");
      if (positions_ && input.tokens.ids.dim(1) > c_.max_pos_embed)
        fail("transformer: input: expected at most max_pos_embed = " + std::to_string(c_.max_pos_embed) +
             " steps, found " + std::to_string(input.tokens.ids.dim(1)));
      return embedding(forward(table_), input.tokens, forward(positions_), {});
    }
    if (!input.values.defined())
      fail("transformer: input: expected floats (embedding is False), found tokens");
    return encoder_(forward, activations(forward.tape.constant(input.values)));
  }
  /// Scores of the first half of the batch beside those of the second half, through three layers but the
  /// last.
  Var match(const Forward& forward, const Var& scores) const {
    if (scores.dim(0) % 2 != 0)
      fail("transformer: dual: expected an even batch, found " + std::to_string(scores.dim(0)));
    Shape half = scores.shape();
    half[0] /= 2;
    const std::vector<Var> halves =
        split(reshape(scores, {1, scores.value().numel()}), {half.numel(), half.numel()});
    const Var both = concat({reshape(halves[0], half), reshape(halves[1], half)});
    const Var x = unary(Unary::relu, match_encoder_(forward, both));
    return unary(Unary::relu, match_middle_(forward, x));
  }

  TransformerConfig c_;
  Parameter* table_ = nullptr;
  Parameter* positions_ = nullptr;
  Linear encoder_;
  std::vector<Block> blocks_;
  LayerNorm norm_;
  Linear class_encoder_, class_decoder_, match_encoder_, match_middle_, last_;
};

}  // namespace

std::unique_ptr<Model> make_model(const TransformerConfig& config, uint64_t seed, DType dtype,
                                  Device device) {
  return std::make_unique<Transformer>(config, seed, dtype, device);
}

}  // namespace eigentrace
