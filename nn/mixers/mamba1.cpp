#include "nn/mixers/mamba1.h"

#include <cmath>

#include "autograd/ops_linear.h"
#include "autograd/ops_pointwise.h"
#include "autograd/ops_scan.h"
#include "autograd/ops_shape.h"
#include "nn/mixers/mamba2.h"
#include "spectral/realisation.h"

namespace eigentrace {
namespace {

const Mamba1Terms& own(const Terms& terms) { return static_cast<const Mamba1Terms&>(terms); }

class Mamba1 final : public Mixer {
 public:
  Mamba1(ParameterList& list, const std::string& name, const MambaConfig& c)
      : channels_(c.expansion * c.hidden_dim), states_(c.state_dim), rank_((c.hidden_dim + 15) / 16) {
    a_log_ = list.add(name + ".A_log", {channels_, states_}, [s = states_](Rng&, std::vector<double>& x) {
      for (size_t i = 0; i < x.size(); ++i)
        x[i] = std::log(static_cast<double>(i % static_cast<size_t>(s) + 1));
    });
    skip_ = list.add(name + ".D", {channels_}, init_constant(1));
    in_ = Linear(list, name + ".in_proj", c.hidden_dim, 2 * channels_, false);
    convolution_ = ShortConvolution(list, name + ".conv1d", channels_, c.conv_dim);
    x_proj_ = Linear(list, name + ".x_proj", channels_, rank_ + 2 * states_, false);
    step_.weight = list.add(name + ".dt_proj.weight", {channels_, rank_},
                            init_uniform(1.0 / std::sqrt(static_cast<double>(rank_))));
    step_.bias = list.add(name + ".dt_proj.bias", {channels_}, init_dt_bias());
    out_ = Linear(list, name + ".out_proj", channels_, c.hidden_dim, false);
  }
  const char* family() const override { return "mamba1"; }

  std::unique_ptr<Terms> terms(Forward& forward, const Var& u, bool convolve) const override {
    auto t = std::make_unique<Mamba1Terms>();
    t->input = u;
    const std::vector<Var> halves = split(in_(forward, u), {channels_, channels_});
    t->x = convolve ? convolution_(forward, halves[0]) : halves[0];
    t->z = halves[1];
    const std::vector<Var> parts = split(x_proj_(forward, t->x), {rank_, states_, states_});
    t->delta = unary(Unary::softplus, widen(step_(forward, parts[0])));
    t->b = parts[1], t->c = parts[2];
    return t;
  }
  Mixed mix(Forward& forward, const Terms& terms) const override {
    const Mamba1Terms& t = own(terms);
    const Var y =
        selective_scan(widen(t.x), t.delta, forward(a_log_), widen(t.b), widen(t.c), forward(skip_));
    return {activations(y), {}};
  }
  Var finish(Forward& forward, const Terms& terms, const Var& y) const override {
    return out_(forward, gate(Unary::silu, y, own(terms).z));
  }
  Realisation realise(const Terms& terms, const Mixed&) const override {
    const Mamba1Terms& t = own(terms);
    return {Family::mamba1, lambda({t.delta.value(), a_log_->value}).map, Selective{t.b.value(), t.c.value()},
            t.x.value(), skip_->value};
  }
  std::vector<LambdaSource> lambda_sources(const Terms& terms, const Mixed&) const override {
    return {{own(terms).delta.value(), true}, {a_log_->value}};
  }
  Lambda lambda(const std::vector<Tensor>& sources) const override {
    const Tensor& a_log = sources.at(1);
    std::vector<double> a = a_log.to_vector<double>();
    for (double& e : a) e = -std::exp(e);
    return {Family::mamba1,
            Outer{sources[0], Tensor::from(a, a_log.shape()).clone(a_log.device(), a_log.dtype())}};
  }

 private:
  int64_t channels_, states_, rank_;
  Parameter *a_log_, *skip_;
  Linear in_, x_proj_, step_, out_;
  ShortConvolution convolution_;
};

}  // namespace

std::unique_ptr<Mixer> make_mamba1(ParameterList& list, const std::string& name, const MambaConfig& config) {
  return std::make_unique<Mamba1>(list, name, config);
}

}  // namespace eigentrace
