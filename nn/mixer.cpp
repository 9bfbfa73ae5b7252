#include "nn/mixer.h"

#include "tensor/error.h"

namespace eigentrace {

Var Mixer::mix_with(Forward&, const Terms&, const EigenvalueMap&) const {
  fail_usage(
      std::string(family()) +
      ": its recurrence has no differentiable form with other eigenvalues, so it cannot be trained with an "
      "intervention; `eigentrace intervene` evaluates a trained one");
}

Var Mixer::operator()(Forward& forward, int layer, const Var& x, const Activation* then) const {
  const std::unique_ptr<Terms> all = terms(forward, x);
  const Labels* const wanted = forward.wanted(layer);
  Mixed mixed = then     ? mix_activated(forward, *all, *then)
                : wanted ? mix_for_rows(forward, *all, *wanted)
                         : mix(forward, *all);
  if (forward.on_mixer)
    if (const Var replacement = forward.on_mixer(layer, *this, *all, mixed); replacement.defined()) {
      if (!(replacement.shape() == mixed.y.shape()))
        fail(std::string(family()) + ": replacement of y: expected " + to_string(mixed.y.shape()) +
             ", found " + to_string(replacement.shape()));
      mixed.y = replacement, mixed.activated = {}, mixed.rows = {};
    }
  Var y = finish(forward, *all, mixed.rows.defined() ? mixed.rows : forward.wanted_rows(layer, mixed.y));
  if (forward.on_mixer_output) forward.on_mixer_output(layer, x, y);
  if (!then) return y;
  return mixed.activated.defined() ? mixed.activated : activation(then->f, y, then->dropout, then->mask);
}

}  // namespace eigentrace
