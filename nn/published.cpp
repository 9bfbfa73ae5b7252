#include "nn/published.h"

#include <memory>
#include <utility>

#include "tensor/error.h"

namespace eigentrace {

namespace {

const Tensor& parameter_of(const Model& model, const std::string& name) {
  for (const Parameter& parameter : model.parameters().parameters())
    if (parameter.name == name) return parameter.value;
  fail("watch_published: expected a parameter called " + name + ", found none");
}

}  // namespace

void watch_published(Forward& forward, const Model& model,
                     std::function<void(int layer, LayerSpectrum spectrum)> found) {
  if (!std::holds_alternative<SsmConfig>(model.config())) {
    forward.on_block = [&forward, &model, found, before = forward.on_block](int layer, const Var& output) {
      if (before) before(layer, output);
      const Mixer& mixer = *model.mixers().at(static_cast<size_t>(layer));
      const bool dropout = std::exchange(forward.dropout, false);
      const std::unique_ptr<Terms> terms = mixer.terms(forward, output, false);
      const Mixed mixed = mixer.mix(forward, *terms);
      forward.dropout = dropout;
      if (auto spectrum = read_published(mixer.realise(*terms, mixed), layer))
        found(layer, *std::move(spectrum));
    };
    return;
  }
  forward.on_mixer = [&model, found, before = forward.on_mixer](int layer, const Mixer& mixer,
                                                                const Terms& terms, const Mixed& mixed) {
    Var replacement = before ? before(layer, mixer, terms, mixed) : Var();
    const Realisation system = mixer.realise(terms, mixed);
    if (system.family == Family::s5) {
      const std::string name = "encoder.layers_" + std::to_string(layer) + ".seq.";
      found(layer, read_published_s5(
                       {parameter_of(model, name + "Lambda_re"), parameter_of(model, name + "Lambda_im")},
                       parameter_of(model, name + "log_step"), layer));
    } else if (auto spectrum = read_published(system, layer)) {
      found(layer, *std::move(spectrum));
    }
    return replacement;
  };
}

}  // namespace eigentrace
