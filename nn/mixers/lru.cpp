#include "nn/mixers/lru.h"

#include <cmath>
#include <limits>

#include "autograd/ops_linear.h"
#include "autograd/ops_pointwise.h"
#include "autograd/ops_scan.h"
#include "autograd/ops_shape.h"
#include "spectral/realisation.h"

namespace eigentrace {

Var complex_linear(const Var& u, const Complex& b) {
  const Var columns = concat({transpose(b.re, 0, 1), transpose(b.im, 0, 1)});  // [D, 2N]
  return linear(u, transpose(columns, 0, 1), {});
}

Var real_readout(const Var& h, const Complex& c, double factor) {
  return linear(h, concat({scale(c.re, factor), scale(c.im, -factor)}), {});
}

namespace {

const DiagonalTerms& own(const Terms& terms) { return static_cast<const DiagonalTerms&>(terms); }

class Lru final : public Mixer {
 public:
  Lru(ParameterList& list, const std::string& name, const SsmConfig& c) {
    const int64_t n = c.state_dim, d = c.hidden_dim;
    const auto draw_nu = [low = c.r_min * c.r_min, high = c.r_max * c.r_max](Rng& rng,
                                                                             std::vector<double>& x) {
      for (double& e : x)
        e = std::log(-0.5 * std::log(std::max(rng.uniform(low, high), std::numeric_limits<double>::min())));
    };
    nu_log_ = list.add(name + ".nu_log", {n}, draw_nu);
    theta_log_ = list.add(name + ".theta_log", {n}, [phase = c.max_phase](Rng& rng, std::vector<double>& x) {
      for (double& e : x) e = std::log(std::max(phase * rng.uniform(), std::numeric_limits<double>::min()));
    });
    std::vector<double> gamma(static_cast<size_t>(n));
    Rng same = list.rng(name + ".nu_log");  // the λ just drawn
    draw_nu(same, gamma);
    for (double& g : gamma) g = 0.5 * std::log(-std::expm1(-2 * std::exp(g)));  // log √(1 − |λ|²)
    gamma_log_ = list.add(name + ".gamma_log", {n}, init_values(gamma));
    const double b = 1 / std::sqrt(2.0 * static_cast<double>(d)), r = 1 / std::sqrt(static_cast<double>(n));
    b_re_ = list.add(name + ".B_re", {n, d}, init_normal(b));
    b_im_ = list.add(name + ".B_im", {n, d}, init_normal(b));
    c_re_ = list.add(name + ".C_re", {d, n}, init_normal(r));
    c_im_ = list.add(name + ".C_im", {d, n}, init_normal(r));
    skip_ = list.add(name + ".D", {d}, init_normal(1));
  }
  const char* family() const override { return "lru"; }

  std::unique_ptr<Terms> terms(Forward& forward, const Var& u, bool) const override {
    auto t = std::make_unique<DiagonalTerms>();
    t->input = u;
    const LruMaps maps = lru_maps(forward(nu_log_), forward(theta_log_), forward(gamma_log_),
                                  {forward(b_re_), forward(b_im_)}, {forward(c_re_), forward(c_im_)});
    t->log_abs = maps.log_abs, t->arg = maps.arg, t->gain_re = maps.gain, t->output = maps.output;
    t->driven = linear(u, maps.input, {});
    return t;
  }
  Mixed mix(Forward& forward, const Terms& terms) const override {
    const DiagonalTerms& t = own(terms);
    return {channel_skip(recurrence(t, {t.log_abs, t.arg}), t.input, forward(skip_)), {}};
  }
  Mixed mix_activated(Forward& forward, const Terms& terms, const Activation& then) const override {
    const DiagonalTerms& t = own(terms);
    const bool seen = forward.on_mixer || forward.on_mixer_output;  // else nobody reads y itself
    const Skipped y = channel_skip_activation(recurrence(t, {t.log_abs, t.arg}), t.input, forward(skip_),
                                              then.f, then.dropout, then.mask, seen);
    return {y.z, {}, y.active};
  }
  bool has_mix_with() const override { return true; }
  Var mix_with(Forward& forward, const Terms& terms, const EigenvalueMap& map) const override {
    const DiagonalTerms& t = own(terms);
    return channel_skip(recurrence(t, map({t.log_abs, t.arg})), t.input, forward(skip_));
  }
  Var finish(Forward&, const Terms&, const Var& y) const override { return y; }
  Realisation realise(const Terms& terms, const Mixed&) const override {
    const DiagonalTerms& t = own(terms);
    return {Family::lru, lambda({t.log_abs.value(), t.arg.value()}).map,
            Dense{{b_re_->value, b_im_->value}, {c_re_->value, c_im_->value}, {t.gain_re, {}}, {}, 1},
            t.input.value(), skip_->value};
  }
  std::vector<LambdaSource> lambda_sources(const Terms& terms, const Mixed&) const override {
    return {{own(terms).log_abs.value()}, {own(terms).arg.value()}};
  }
  Lambda lambda(const std::vector<Tensor>& sources) const override {
    return {Family::lru, Diagonal{sources.at(0), sources.at(1)}};
  }

 private:
  Var recurrence(const DiagonalTerms& t, const EigenvalueVars& lambda) const {
    const Var h = diagonal_scan(t.driven, lambda.log_abs, lambda.arg);
    return linear(h, t.output, {});
  }

  Parameter *nu_log_, *theta_log_, *gamma_log_, *b_re_, *b_im_, *c_re_, *c_im_, *skip_;
};

}  // namespace

std::unique_ptr<Mixer> make_lru(ParameterList& list, const std::string& name, const SsmConfig& config) {
  return std::make_unique<Lru>(list, name, config);
}

}  // namespace eigentrace
