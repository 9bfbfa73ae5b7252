// The model of the MAD suite (arXiv 2403.17844): embedding → layers → norm → linear, norm = RMSNorm.
//
//   layer         x + mixer(norm(x)) and x + w3(silu(w1 n)·(w2 n)), n = norm(x), in turn
//   auto-encoder  e = the last layer's output at the last position, position t decoded from e + π_t:
//                 norm, linear, GELU, norm, linear, GELU, norm, linear
#include <cmath>

#include "autograd/ops_linear.h"
#include "autograd/ops_norm.h"
#include "autograd/ops_pointwise.h"
#include "autograd/ops_shape.h"
#include "nn/mixers/attention.h"
#include "nn/mixers/mamba1.h"
#include "nn/mixers/mamba2.h"
#include "nn/mixers/s4.h"
#include "nn/mixers/s5.h"
#include "nn/model.h"
#include "tensor/error.h"

namespace eigentrace {
namespace {

constexpr double initial_deviation = 0.02;

struct RmsNorm {
  Parameter* weight = nullptr;
  RmsNorm() = default;
  RmsNorm(ParameterList& list, const std::string& name, int64_t width)
      : weight(list.add(name + ".weight", {width}, init_constant(1))) {}
  Var operator()(const Forward& forward, const Var& x) const { return rms_norm(x, forward(weight), 1e-5); }
};

std::unique_ptr<Mixer> make_mixer(ParameterList& list, const std::string& name, const TransformerConfig& c) {
  return make_attention(list, name, c);
}
std::unique_ptr<Mixer> make_mixer(ParameterList& list, const std::string& name, const MambaConfig& c) {
  return c.version == MambaVersion::mamba1 ? make_mamba1(list, name, c) : make_mamba2(list, name, c);
}
std::unique_ptr<Mixer> make_mixer(ParameterList& list, const std::string& name, const SsmConfig& c) {
  if (c.layer == SsmKind::lru) return make_lru(list, name, c);
  return c.layer == SsmKind::s5 ? make_s5(list, name, c) : make_s4(list, name, c);
}
std::unique_ptr<Mixer> make_mixer(ParameterList&, const std::string&, const MadModelConfig&) {
  fail("mad: mixer: expected a mixer of another family, found mad");
}

class SwiGlu {
 public:
  SwiGlu(ParameterList& list, const std::string& name, int64_t width) {
    const int64_t inner = (8 * width / 3 + 15) / 16 * 16;
    w1_ = Linear(list, name + ".w1", width, inner, false);
    w2_ = Linear(list, name + ".w2", width, inner, false);
    w3_ = Linear(list, name + ".w3", inner, width, false);
  }
  Var operator()(const Forward& forward, const Var& x) const {
    return w3_(forward, gate(Unary::silu, w2_(forward, x), w1_(forward, x)));
  }

 private:
  Linear w1_, w2_, w3_;
};

/// A mixer layer and the MLP layer behind it (an odd number of layers ends without).
class Block {
 public:
  Block(ParameterList& list, int64_t first, const MadModelConfig& c)
      : scope_("layers." + std::to_string(first)), norm_(list, scope_ + ".norm", c.hidden_dim) {
    mixer_ = std::visit([&](const auto& own) { return make_mixer(list, scope_ + ".mixer", own); },
                        mixer_config(c));
    if (first + 1 == c.num_layers) return;
    mlp_scope_ = "layers." + std::to_string(first + 1);
    mlp_norm_ = RmsNorm(list, mlp_scope_ + ".norm", c.hidden_dim);
    mlp_.emplace_back(list, mlp_scope_ + ".mlp", c.hidden_dim);
  }
  const Mixer* mixer() const { return mixer_.get(); }

  Var operator()(Forward& forward, int index, Var x) const {
    forward.tape.set_scope(scope_);
    x = add(x, (*mixer_)(forward, index, norm_(forward, x)));
    if (!mlp_.empty()) {
      forward.tape.set_scope(mlp_scope_);
      x = add(x, mlp_[0](forward, mlp_norm_(forward, x)));
    }
    if (forward.on_block) forward.on_block(index, x);
    return x;
  }

 private:
  std::string scope_, mlp_scope_;
  RmsNorm norm_, mlp_norm_;
  std::unique_ptr<Mixer> mixer_;
  std::vector<SwiGlu> mlp_;  // none or one
};

/// π_t = [sin(t ω_j)]_j, [cos(t ω_j)]_j, ω_j = exp(−j ln 10000/(D/2 − 1)): [T,D].
std::vector<double> sinusoids(int64_t time, int64_t width) {
  const int64_t half = width / 2;
  std::vector<double> values(static_cast<size_t>(time * width));
  for (int64_t t = 0; t < time; ++t)
    for (int64_t j = 0; j < half; ++j) {
      const double rate =
          std::exp(-static_cast<double>(j) * std::log(10000.0) / static_cast<double>(half - 1));
      values[static_cast<size_t>(t * width + j)] = std::sin(static_cast<double>(t) * rate);
      values[static_cast<size_t>(t * width + half + j)] = std::cos(static_cast<double>(t) * rate);
    }
  return values;
}

class Mad final : public Model {
 public:
  Mad(const MadModelConfig& c, uint64_t seed, DType dtype, Device device)
      : Model(c, ParameterList(seed, dtype, device)), c_(c) {
    if (c.fixed_time() && c.seq_len < 1)
      fail_usage("model.seq_len: auto_encoder and s4 want the length of the sequences, found 0");
    ParameterList& list = parameters_;
    const int64_t width = c.hidden_dim;
    table_ = list.add("embedding.weight", {c.vocab_size, width}, init_normal(initial_deviation));
    for (int64_t l = 0; l < c.num_layers; l += 2) blocks_.emplace_back(list, l, c);
    if (c.auto_encoder) {
      for (const char* name : {"decoder.0", "decoder.1"}) {
        norms_.emplace_back(list, std::string(name) + ".norm", width);
        hidden_.emplace_back(list, std::string(name) + ".linear", width, width);
      }
      positions_ = Tensor::zeros({c.seq_len, width}, dtype, device);
      positions_.assign(sinusoids(c.seq_len, width));
    }
    norms_.emplace_back(list, "head.norm", width);
    last_ = Linear(list, "head.linear", width, c.output_dim);
    initialise();
  }

  Var features(Forward& forward, const ModelInput& input) const override {
    forward.tape.set_scope("embedding");
    if (!input.tokens.ids.defined()) fail("mad: input: expected tokens, found floats");
    if (c_.fixed_time() && input.tokens.ids.dim(1) != c_.seq_len)
      fail("mad: input: expected seq_len = " + std::to_string(c_.seq_len) + " steps, found " +
           std::to_string(input.tokens.ids.dim(1)));
    Var x = embedding(forward(table_), input.tokens, {}, {});
    int index = 0;
    for (const Block& block : blocks_) x = block(forward, index++, x);
    forward.tape.set_scope("head");
    if (c_.auto_encoder) {
      const Var e = pool(x, Pooling::last, {}, {});
      x = activations(add(reshape(e, {e.dim(0), 1, e.dim(1)}), forward.tape.constant(positions_)));
      for (size_t i = 0; i < hidden_.size(); ++i)
        x = unary(Unary::gelu, hidden_[i](forward, norms_[i](forward, x)));
    }
    return norms_.back()(forward, x);
  }
  OutputLayer output_layer(const Forward& forward) const override {
    return {forward(last_.weight), forward(last_.bias)};
  }
  std::vector<const Mixer*> mixers() const override {
    std::vector<const Mixer*> all;
    for (const Block& block : blocks_) all.push_back(block.mixer());
    return all;
  }
  bool per_position() const override { return true; }

 private:
  /// Every linear layer's bias to 0, the mixers' too (but mamba1's dt_proj, whose bias is its steps); with an
  /// auto-encoder that one as well, and every linear layer's weight to N(0, 0.02²).
  void initialise() {
    for (Parameter& p : parameters_.parameters()) {
      std::vector<double> values(static_cast<size_t>(p.value.numel()), 0.0);
      if (p.name.ends_with(".weight") && p.value.rank() == 2 && c_.auto_encoder) {
        Rng rng = parameters_.rng(p.name);
        init_normal(initial_deviation)(rng, values);
        p.value.assign(values);
      } else if (p.name.ends_with(".bias")) {
        const Parameter* weight = parameters_.find(p.name.substr(0, p.name.rfind('.')) + ".weight");
        const bool linear = weight && weight->value.rank() == 2;  // convolutions keep theirs
        if (linear && (c_.auto_encoder || !p.name.ends_with("dt_proj.bias"))) p.value.assign(values);
      }
    }
  }

  MadModelConfig c_;
  Parameter* table_ = nullptr;
  std::vector<Block> blocks_;
  std::vector<RmsNorm> norms_;  // the decoder's two, the head's
  std::vector<Linear> hidden_;  // the decoder's two
  Tensor positions_;            // [T,D]
  Linear last_;
};

}  // namespace

std::unique_ptr<Model> make_model(const MadModelConfig& config, uint64_t seed, DType dtype, Device device) {
  return std::make_unique<Mad>(config, seed, dtype, device);
}

}  // namespace eigentrace
