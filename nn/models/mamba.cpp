// The mamba family: encoder → blocks → pooling → decoder. No dropout after the encoder, no final norm.
//
//   prenorm    x + drop(glu(drop(gelu(mamba(norm(x))))))
//   postnorm   norm(x + drop(glu(drop(gelu(mamba(x))))))
#include "autograd/ops_pointwise.h"
#include "nn/mixers/mamba1.h"
#include "nn/mixers/mamba2.h"
#include "nn/model.h"
#include "nn/models/stream.h"
#include "tensor/error.h"

namespace eigentrace {
namespace {

class Block {
 public:
  Block(ParameterList& list, const std::string& name, const MambaConfig& c)
      : scope_(name), glu_(c.glu), prenorm_(c.prenorm), rate_(c.dropout) {
    mixer_ = c.version == MambaVersion::mamba1 ? make_mamba1(list, name + ".mamba", c)
                                               : make_mamba2(list, name + ".mamba", c);
    norm_ = LayerNorm(list, name + ".norm", c.hidden_dim);
    if (glu_) linear_ = Linear(list, name + ".glu.linear", c.hidden_dim, 2 * c.hidden_dim);
  }
  const Mixer* mixer() const { return mixer_.get(); }

  Stream operator()(Forward& forward, int layer, const Stream& in) const {
    const double rate = forward.rate(rate_);
    forward.tape.set_scope(scope_ + ".mamba");
    const ResidualNorm before = prenorm_ ? norm_of(forward, norm_, in) : ResidualNorm{in.x, in.x};
    const Var mixed = (*mixer_)(forward, layer, before.normed);
    forward.tape.set_scope(scope_);
    const Var active = activation(Unary::gelu, mixed, rate);
    const Var x = forward.wanted_rows(layer, before.sum), wide = glu_ ? linear_(forward, active) : Var();
    Stream out;
    if (glu_ && !prenorm_ && rate == 0) {
      out.x = residual_layer_norm_of_glu(x, wide, forward(norm_.weight), forward(norm_.bias), norm_.epsilon)
                  .normed;
    } else {
      out = {x, glu_ ? glu(wide) : active, rate};
      if (!prenorm_) out = {norm_of(forward, norm_, out).normed, {}, 0};
    }
    if (forward.on_block) {
      out = {sum_of(out), {}, 0};
      forward.on_block(layer, out.x);
    }
    return out;
  }

 private:
  std::string scope_;
  bool glu_, prenorm_;
  double rate_;
  std::unique_ptr<Mixer> mixer_;
  LayerNorm norm_;
  Linear linear_;
};

Pooling pooling_of(PoolKind kind) {
  if (kind == PoolKind::max) return Pooling::max;
  if (kind == PoolKind::last) return Pooling::last;
  return Pooling::mean;
}

class Mamba final : public Model {
 public:
  Mamba(const MambaConfig& c, uint64_t seed, DType dtype, Device device)
      : Model(c, ParameterList(seed, dtype, device)), c_(c) {
    ParameterList& list = parameters_;
    if (c.token_embedding)
      table_ = list.add("encoder.word_embeddings.weight", {c.vocab_size, c.hidden_dim}, init_normal(1));
    else
      encoder_ = Linear(list, "encoder", c.input_dim, c.hidden_dim);
    for (int64_t l = 0; l < c.num_layers; ++l) blocks_.emplace_back(list, "blocks." + std::to_string(l), c);
    decoder_ = Linear(list, "decoder", c.hidden_dim, c.output_dim);
  }

  Var features(Forward& forward, const ModelInput& input) const override {
    forward.tape.set_scope("encoder");
    Stream stream{encode(forward, input), {}, 0};
    int layer = 0;
    for (const Block& block : blocks_) stream = block(forward, layer++, stream);
    forward.tape.set_scope("head");
    const Var x = sum_of(stream);
    return c_.pooling == PoolKind::none ? x : pool(x, pooling_of(c_.pooling), {}, input.valid_time);
  }
  OutputLayer output_layer(const Forward& forward) const override {
    return {forward(decoder_.weight), forward(decoder_.bias)};
  }
  std::vector<const Mixer*> mixers() const override {
    std::vector<const Mixer*> all;
    for (const Block& block : blocks_) all.push_back(block.mixer());
    return all;
  }
  bool per_position() const override { return c_.pooling == PoolKind::none; }
  bool leaves_rows_out() const override { return c_.version == MambaVersion::mamba2; }

 private:
  Var encode(Forward& forward, const ModelInput& input) const {
    if (c_.token_embedding) {
      if (!input.tokens.ids.defined())
        fail("mamba: input: expected tokens (token_embedding is True), found floats");
      return embedding(forward(table_), input.tokens, {}, {});
    }
    if (!input.values.defined())
      fail("mamba: input: expected floats (token_embedding is False), found tokens");
    return encoder_(forward, activations(forward.tape.constant(input.values)));
  }

  MambaConfig c_;
  Parameter* table_ = nullptr;
  Linear encoder_, decoder_;
  std::vector<Block> blocks_;
};

}  // namespace

std::unique_ptr<Model> make_model(const MambaConfig& config, uint64_t seed, DType dtype, Device device) {
  return std::make_unique<Mamba>(config, seed, dtype, device);
}

}  // namespace eigentrace
