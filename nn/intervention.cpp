#include "nn/intervention.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "autograd/ops_pointwise.h"
#include "spectral/realisation.h"
#include "tensor/error.h"
#include "tensor/worse.h"

namespace eigentrace {
namespace {

// log of a λ that is 0: exp of it is 0 in float64, and sums of it over a sequence are finite.
constexpr double log_zero = -800;

double log_radius(double radius) { return std::max(std::log(radius), log_zero); }

}  // namespace

Var Intervener::constant(const Var& like, size_t n, int layer, const char* what, const Shape& shape,
                         const std::vector<double>& values) {
  const std::string key = fmt::format("{}/{}/{}/{}", n, layer, what, to_string(shape));
  Tensor& kept = constants_[key];
  if (!kept.defined()) kept = Tensor::from(values, shape).clone(like.value().device(), like.dtype());
  return like.tape().constant(kept);
}

EigenvalueVars Intervener::mapped(const EigenvalueVars& own, int layer, const Mixer& mixer) {
  EigenvalueVars now = own;
  const bool with_heads = !own.arg.defined();
  const int64_t width = own.log_abs.dim(-1);
  const std::vector<Intervention>& list = interventions_->list();
  for (size_t n = 0; n < list.size(); ++n) {
    const Intervention& one = list[n];
    if (!one.in_layer(layer)) continue;
    const auto refuse = [&](const std::string& what) {
      fail_usage(fmt::format("intervention '{}': layer {} ({}) {}", one.text, layer, mixer.family(), what));
    };
    for (const int64_t head : one.heads)
      if (!with_heads || head >= width)
        refuse(with_heads ? fmt::format("has heads 0 to {}", width - 1) : "has no heads");
    const bool turns = (one.phase() && one.change != Change::arg_scale && one.number != 0) ||
                       (one.change == Change::lambda_set && one.number < 0);
    if (with_heads && turns) refuse("has real and positive eigenvalues: their phase is always 0");
    const auto number = [&](const char* what, double value) {
      return constant(own.log_abs, n, layer, what, {1}, {value});
    };
    const auto everywhere = [&](const char* what, double value) {
      return constant(own.log_abs, n, layer, what, own.log_abs.shape(),
                      std::vector<double>(size_t(own.log_abs.value().numel()), value));
    };
    const Var x = now.log_abs;
    Var y = x, turned = now.arg;
    const double degrees = one.number * std::numbers::pi / 180;
    switch (one.change) {
      case Change::abs_at_most: {  // min(x, r) = r − relu(r − x)
        if (std::isinf(one.number)) break;
        const Var r = number("r", log_radius(one.number));
        y = sub(r, unary(Unary::relu, sub(r, x)));
        break;
      }
      case Change::abs_at_least: {
        if (std::isinf(one.number)) refuse("cannot have |λ| ≥ ∞");
        const Var r = number("r", log_radius(one.number));
        y = add(r, unary(Unary::relu, sub(x, r)));
        break;
      }
      case Change::abs_set:
        y = everywhere("r", log_radius(one.number));
        break;
      case Change::abs_scale:
        y = add(x, number("r", log_radius(one.number)));
        break;
      case Change::abs_power:
        y = scale(x, one.number);
        break;
      case Change::lambda_set:
        y = everywhere("r", log_radius(std::abs(one.number)));
        if (turned.defined()) turned = everywhere("arg", one.number < 0 ? std::numbers::pi : 0);
        break;
      case Change::arg_set:
        if (turned.defined()) turned = everywhere("arg", degrees);
        break;
      case Change::arg_shift:
        if (turned.defined()) turned = add(turned, number("arg", degrees));
        break;
      case Change::arg_scale:
        if (turned.defined()) {  // of the angle in (−π, π], whichever branch the layer keeps
          std::vector<double> branch = turned.value().to_vector<double>();
          for (double& angle : branch) angle = wrap_angle(angle) - angle;
          const Tensor offset =
              Tensor::from(branch, turned.shape()).clone(turned.value().device(), turned.dtype());
          turned = scale(add(turned, turned.tape().constant(offset)), one.number);
        }
        break;
      case Change::freeze: {
        const LayerSpectrum* source = interventions_->frozen(n, layer);
        if (source == nullptr) refuse("is not told what it is frozen to");
        if (source->time_dependent() && source->shape[0] != 1)
          refuse(
              "can be frozen to the eigenvalues of other weights on the same batch in evaluation only; "
              "freeze=mean or freeze=profile");
        if (source->shape.back() != width) refuse("has another width than what it is frozen to");
        Shape shape = own.log_abs.shape();
        std::vector<double> values = source->log_abs;
        if (source->time_dependent()) {
          const int64_t steps = source->shape[1];
          if (steps != 1 && steps + source->first_step != shape[1])
            refuse(fmt::format("has {} steps, the profile it is frozen to {}", shape[1],
                               steps + source->first_step));
          if (steps != 1) values.insert(values.begin(), size_t(source->first_step * width), 0.0);
          shape = Shape{1, steps == 1 ? 1 : shape[1], width};
        }
        for (double& value : values) value = std::isnan(value) ? 0 : std::max(value, log_zero);
        y = constant(own.log_abs, n, layer, "r", shape, values);
        y = add(y, constant(own.log_abs, n, layer, "0", own.log_abs.shape(),
                            std::vector<double>(size_t(own.log_abs.value().numel()), 0.0)));
        if (turned.defined()) {
          std::vector<double> args = source->arg;
          args.resize(size_t(width), 0.0);
          turned = constant(own.log_abs, n, layer, "arg", Shape{width}, args);
        }
        break;
      }
    }
    if (!one.heads.empty()) {  // x + m (y − x), m = 1 in the heads chosen
      std::vector<double> mask(static_cast<size_t>(width), 0.0);
      for (const int64_t head : one.heads) mask[size_t(head)] = 1;
      y = add(x, mul(constant(own.log_abs, n, layer, "mask", {width}, mask), sub(y, x)));
    }
    now = {y, turned};
  }
  return now;
}

Var Intervener::operator()(Forward& forward, int layer, const Mixer& mixer, const Terms& terms,
                           const Mixed& mixed) {
  if (!interventions_->touches(layer)) return {};
  const auto per_batch = [&] {  // frozen to another model's eigenvalues on this very batch
    for (size_t n = 0; n < interventions_->list().size(); ++n)
      if (const LayerSpectrum* source = interventions_->frozen(n, layer))
        if (source->time_dependent() && source->shape[0] != 1) return true;
    return false;
  };
  if (path_ == InterventionPath::ops ||
      (path_ == InterventionPath::automatic && mixer.has_mix_with() && !per_batch()))
    return mixer.mix_with(forward, terms,
                          [&](const EigenvalueVars& own) { return mapped(own, layer, mixer); });
  if (forward.ctx().dry()) return {};
  const Tensor y = mixed.y.value();
  const std::vector<double> values = simulations_[layer](mixer.realise(terms, mixed), layer, *interventions_);
  return forward.tape.constant(Tensor::from(values, y.shape()).clone(y.device(), y.dtype()));
}

void Intervener::attach(Forward& forward) {
  forward.on_mixer = [this, &forward](int layer, const Mixer& mixer, const Terms& terms, const Mixed& mixed) {
    return (*this)(forward, layer, mixer, terms, mixed);
  };
}

double Intervener::condition() const {
  double largest = 0;
  for (const auto& [layer, simulation] : simulations_) largest = worse(largest, simulation.condition());
  return largest;
}

}  // namespace eigentrace
