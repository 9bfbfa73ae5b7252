#include "nn/mixers/mamba2.h"

#include <cmath>

#include "autograd/ops_attention.h"
#include "autograd/ops_pointwise.h"
#include "autograd/ops_scan.h"
#include "autograd/ops_shape.h"
#include "spectral/realisation.h"

namespace eigentrace {

Initialiser init_dt_bias() {
  return [](Rng& rng, std::vector<double>& x) {
    for (double& e : x) {
      const double step = std::max(std::exp(rng.uniform(std::log(1e-3), std::log(1e-1))), 1e-4);
      e = step + std::log(-std::expm1(-step));
    }
  };
}

namespace {

const Mamba2Terms& own(const Terms& terms) { return static_cast<const Mamba2Terms&>(terms); }

class Mamba2 : public Mixer {
 public:
  Mamba2(ParameterList& list, const std::string& name, const MambaConfig& c, int64_t steps_projected)
      : width_(c.hidden_dim),
        inner_(c.expansion * c.hidden_dim),
        states_(c.state_dim),
        heads_(c.expansion * c.num_heads),
        steps_(steps_projected) {
    dt_bias_ = list.add(name + ".dt_bias", {heads_}, init_dt_bias());
    skip_ = list.add(name + ".D", {heads_}, init_constant(1));
    in_ = Linear(list, name + ".in_proj", width_, inner_ + 2 * states_ + steps_, false);
    convolution_ = ShortConvolution(list, name + ".conv1d", inner_ + 2 * states_, c.conv_dim);
    out_ = Linear(list, name + ".out_proj", inner_, width_, false);
  }

  Var finish(Forward& forward, const Terms&, const Var& y) const override {
    return out_(forward, reshape(y, {y.dim(0), y.dim(1), inner_}));
  }

 protected:
  /// x, B, C; returns what Δ is made of, float32.
  Var project(Forward& forward, const Var& u, bool convolve, Mamba2Terms& t) const {
    t.input = u;
    const std::vector<Var> parts = split(in_(forward, u), {inner_ + 2 * states_, steps_});
    const Var xbc = convolve ? convolution_(forward, parts[0]) : parts[0];
    const std::vector<Var> cut = split(xbc, {inner_, states_, states_});
    const int64_t batch = u.dim(0), time = u.dim(1);
    t.v = reshape(cut[0], {batch, time, heads_, inner_ / heads_});
    t.k = reshape(cut[1], {batch, time, 1, states_});
    t.q = reshape(cut[2], {batch, time, 1, states_});
    return widen(parts[1]);
  }
  int64_t width_, inner_, states_, heads_, steps_;
  Parameter *dt_bias_, *skip_;
  Linear in_, out_;
  ShortConvolution convolution_;
};

class Ssd final : public Mamba2 {
 public:
  Ssd(ParameterList& list, const std::string& name, const MambaConfig& c)
      : Mamba2(list, name, c, c.expansion * c.num_heads) {
    a_log_ = list.add(name + ".A_log", {heads_}, [](Rng& rng, std::vector<double>& x) {
      for (double& e : x) e = std::log(rng.uniform(1, 16));
    });
  }
  const char* family() const override { return "mamba2"; }
  std::unique_ptr<Terms> terms(Forward& forward, const Var& x, bool convolve) const override {
    auto t = std::make_unique<Mamba2Terms>();
    const Var raw = project(forward, x, convolve, *t);
    const SelectiveStep step = selective_step(raw, forward(dt_bias_), forward(a_log_));
    t->dt = step.delta, t->log_a = step.log_a;
    return t;
  }
  Mixed mix(Forward& forward, const Terms& terms) const override {
    const Mamba2Terms& t = own(terms);
    return {ssd(t.q, t.k, t.v, t.log_a, t.dt, forward(skip_)), {}};
  }
  bool has_mix_with() const override { return true; }
  Var mix_with(Forward& forward, const Terms& terms, const EigenvalueMap& map) const override {
    const Mamba2Terms& t = own(terms);
    return ssd(t.q, t.k, t.v, map({t.log_a, {}}).log_abs, t.dt, forward(skip_));
  }
  Realisation realise(const Terms& terms, const Mixed&) const override {
    const Mamba2Terms& t = own(terms);
    return {Family::mamba2, lambda({t.log_a.value()}).map,
            Factored{t.q.value(), t.k.value(), t.dt.value(), 1.0}, t.v.value(), skip_->value};
  }
  std::vector<LambdaSource> lambda_sources(const Terms& terms, const Mixed&) const override {
    return {{own(terms).log_a.value(), true}};
  }
  Lambda lambda(const std::vector<Tensor>& sources) const override {
    return {Family::mamba2, ScalarDecay{sources.at(0)}};
  }

 private:
  Parameter* a_log_;
};

class PseudoLti final : public Mamba2 {
 public:
  PseudoLti(ParameterList& list, const std::string& name, const MambaConfig& c) : Mamba2(list, name, c, 1) {
    a_ = list.add(name + ".A", {heads_}, init_uniform(-8, -2));
    list.add_buffer(name + ".beta", {heads_}, 1);
  }
  const char* family() const override { return "mamba2-pseudoLTI"; }
  std::unique_ptr<Terms> terms(Forward& forward, const Var& x, bool convolve) const override {
    auto t = std::make_unique<Mamba2Terms>();
    t->dt = unary(Unary::softplus, add(project(forward, x, convolve, *t), forward(dt_bias_)));
    const int64_t batch = x.dim(0), time = x.dim(1);
    const Var grouped = reshape(t->k, {batch, time, heads_, states_ / heads_});
    t->k = reshape(mul(grouped, reshape(t->dt, {batch, time, heads_, 1})), {batch, time, 1, states_});
    t->log_a = unary(Unary::neg, unary(Unary::softplus, forward(a_)));
    return t;
  }
  Mixed mix(Forward& forward, const Terms& terms) const override {
    const Mamba2Terms& t = own(terms);
    return {ssd(t.q, t.k, t.v, t.log_a, {}, forward(skip_)), {}};
  }
  bool has_mix_with() const override { return true; }
  Var mix_with(Forward& forward, const Terms& terms, const EigenvalueMap& map) const override {
    const Mamba2Terms& t = own(terms);
    return ssd(t.q, t.k, t.v, map({t.log_a, {}}).log_abs, {}, forward(skip_));
  }
  Realisation realise(const Terms& terms, const Mixed&) const override {
    const Mamba2Terms& t = own(terms);
    return {Family::mamba2_pseudo_lti, lambda({t.log_a.value()}).map,
            Factored{t.q.value(), t.k.value(), {}, 1.0}, t.v.value(), skip_->value};
  }
  std::vector<LambdaSource> lambda_sources(const Terms& terms, const Mixed&) const override {
    return {{own(terms).log_a.value(), false}};
  }
  Lambda lambda(const std::vector<Tensor>& sources) const override {
    return {Family::mamba2_pseudo_lti, ScalarDecay{sources.at(0)}};
  }

 private:
  Parameter* a_;
};

}  // namespace

std::unique_ptr<Mixer> make_mamba2(ParameterList& list, const std::string& name, const MambaConfig& config) {
  if (config.pseudoLTI) return std::make_unique<PseudoLti>(list, name, config);
  return std::make_unique<Ssd>(list, name, config);
}

}  // namespace eigentrace
