#include "nn/mixers/s5.h"

#include <cmath>

#include "autograd/ops_linear.h"
#include "autograd/ops_pointwise.h"
#include "autograd/ops_scan.h"
#include "autograd/ops_shape.h"
#include "spectral/hippo.h"
#include "spectral/realisation.h"

namespace eigentrace {
namespace {

using Z = std::complex<double>;

std::vector<double> interleaved(const std::vector<Z>& z) {
  std::vector<double> x;
  for (const Z& e : z) x.push_back(e.real()), x.push_back(e.imag());
  return x;
}

/// C = (C₀,re + i C₀,im) V, C₀ [D,S,2] LeCun-normal.
Initialiser init_c(const HippoBlocks& blocks, int64_t width, int64_t fan_in) {
  return [=](Rng& rng, std::vector<double>& x) {
    std::vector<double> c0(static_cast<size_t>(width * blocks.state_dim * 2));
    init_lecun_normal(fan_in)(rng, c0);
    std::vector<Z> c;
    for (size_t i = 0; i < c0.size(); i += 2) c.push_back({c0[i], c0[i + 1]});
    x = interleaved(blocks.times(c, width));
  };
}

/// B = V* B₀, B₀ [S,D] real, LeCun-normal with fan-in S.
Initialiser init_b(const HippoBlocks& blocks, int64_t width) {
  return [=](Rng& rng, std::vector<double>& x) {
    std::vector<double> b0(static_cast<size_t>(blocks.state_dim * width));
    init_lecun_normal(blocks.state_dim)(rng, b0);
    x = interleaved(blocks.adjoint_times(b0, width));
  };
}

const DiagonalTerms& own(const Terms& terms) { return static_cast<const DiagonalTerms&>(terms); }

class S5 final : public Mixer {
 public:
  S5(ParameterList& list, const std::string& name, const SsmConfig& c) : c_(c) {
    const HippoBlocks blocks = hippo_blocks(c.state_dim, c.num_blocks, c.conj_sym);
    const int64_t n = blocks.states(), d = c.hidden_dim;
    states_ = n;
    std::vector<double> re, im;
    for (const Z& lambda : blocks.lambda) re.push_back(lambda.real()), im.push_back(lambda.imag());
    lambda_re_ = list.add(name + ".Lambda_re", {n}, init_values(re));
    lambda_im_ = list.add(name + ".Lambda_im", {n}, init_values(im));
    b_ = list.add(name + ".B", {n, d, 2}, init_b(blocks, d));
    if (c.C_init == CInit::complex_normal) {
      forward_c_ = list.add(name + ".C", {d, c.bidirectional ? 2 * n : n, 2}, init_normal(std::sqrt(0.5)));
    } else {
      const int64_t fan_in = c.C_init == CInit::lecun_normal ? d * c.state_dim : c.state_dim;
      const Initialiser init = init_c(blocks, d, fan_in);
      forward_c_ = list.add(name + (c.bidirectional ? ".C1" : ".C"), {d, n, 2}, init);
      if (c.bidirectional) backward_c_ = list.add(name + ".C2", {d, n, 2}, init);
    }
    skip_ = list.add(name + ".D", {d}, init_normal(1));
    log_step_ = list.add(name + ".log_step", {n, 1}, init_uniform(std::log(c.dt_min), std::log(c.dt_max)));
  }
  const char* family() const override { return "s5"; }

  std::unique_ptr<Terms> terms(Forward& forward, const Var& u, bool) const override {
    auto t = std::make_unique<DiagonalTerms>();
    t->input = u;
    const Discretised discrete = s5_discretise(forward(lambda_re_), forward(lambda_im_), forward(log_step_),
                                               c_.discretization == Discretization::bilinear, c_.clip_eigs);
    t->log_abs = discrete.log_abs, t->arg = discrete.arg;
    t->gain_re = discrete.factor.re.value(), t->gain_im = discrete.factor.im.value();
    const Complex rows{reshape(discrete.factor.re, {states_, 1}), reshape(discrete.factor.im, {states_, 1})};
    t->driven = complex_linear(u, rows * complex_parts(forward(b_)));
    return t;
  }
  Mixed mix(Forward& forward, const Terms& terms) const override {
    const DiagonalTerms& t = own(terms);
    return {channel_skip(recurrence(forward, t, {t.log_abs, t.arg}), t.input, forward(skip_)), {}};
  }
  Mixed mix_activated(Forward& forward, const Terms& terms, const Activation& then) const override {
    const DiagonalTerms& t = own(terms);
    const Skipped y = channel_skip_activation(recurrence(forward, t, {t.log_abs, t.arg}), t.input,
                                              forward(skip_), then.f, then.dropout, then.mask);
    return {y.z, {}, y.active};
  }
  bool has_mix_with() const override { return true; }
  Var mix_with(Forward& forward, const Terms& terms, const EigenvalueMap& map) const override {
    const DiagonalTerms& t = own(terms);
    return channel_skip(recurrence(forward, t, map({t.log_abs, t.arg})), t.input, forward(skip_));
  }
  Var finish(Forward&, const Terms&, const Var& y) const override { return y; }
  Realisation realise(const Terms& terms, const Mixed&) const override {
    const DiagonalTerms& t = own(terms);
    Dense maps{ComplexTensor::interleaved(b_->value), {}, {t.gain_re, t.gain_im}, {}, readout()};
    maps.c = ComplexTensor::interleaved(forward_c_->value.slice(1, 0, states_));
    if (c_.bidirectional)
      maps.c_backward = ComplexTensor::interleaved(
          backward_c_ ? backward_c_->value : forward_c_->value.slice(1, states_, states_));
    return {Family::s5, lambda({t.log_abs.value(), t.arg.value()}).map, maps, t.input.value(), skip_->value};
  }
  std::vector<LambdaSource> lambda_sources(const Terms& terms, const Mixed&) const override {
    return {{own(terms).log_abs.value()}, {own(terms).arg.value()}};
  }
  Lambda lambda(const std::vector<Tensor>& sources) const override {
    return {Family::s5, Diagonal{sources.at(0), sources.at(1)}};
  }

 private:
  Var recurrence(Forward& forward, const DiagonalTerms& t, const EigenvalueVars& lambda) const {
    Complex c = complex_parts(forward(forward_c_)), from_end;
    if (c_.bidirectional && backward_c_) {
      from_end = complex_parts(forward(backward_c_));
    } else if (c_.bidirectional) {  // one C [D,2N] for [h; h⃖]
      const std::vector<Var> re = split(c.re, {states_, states_}), im = split(c.im, {states_, states_});
      c = {re[0], im[0]}, from_end = {re[1], im[1]};
    }
    Var y = real_readout(diagonal_scan(t.driven, lambda.log_abs, lambda.arg), c, readout());
    if (c_.bidirectional)
      y = add(y,
              real_readout(diagonal_scan(t.driven, lambda.log_abs, lambda.arg, true), from_end, readout()));
    return y;
  }
  double readout() const { return c_.conj_sym ? 2 : 1; }
  SsmConfig c_;
  int64_t states_;
  Parameter *lambda_re_, *lambda_im_, *b_, *forward_c_, *backward_c_ = nullptr, *skip_, *log_step_;
};

}  // namespace

std::unique_ptr<Mixer> make_s5(ParameterList& list, const std::string& name, const SsmConfig& config) {
  return std::make_unique<S5>(list, name, config);
}

}  // namespace eigentrace
