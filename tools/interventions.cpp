#include "tools/interventions.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "nn/checkpoint.h"
#include "spectral/realisation.h"
#include "tensor/error.h"
#include "tools/run_spectra.h"

namespace eigentrace {
namespace {

constexpr int64_t most_values = int64_t(1) << 26;  // 512 MiB of a layer

/// The exact eigenvalues of every layer in one evaluation pass, none left out.
std::vector<LayerSpectrum> spectra_of(Context& ctx, const Model& model, const ModelInput& input,
                                      const std::vector<int64_t>& wanted) {
  std::vector<LayerSpectrum> spectra;
  Tape tape(ctx, false);
  Forward forward(tape, model.parameters());
  forward.on_mixer = [&](int layer, const Mixer& mixer, const Terms& terms, const Mixed& mixed) {
    if (!wanted.empty() && std::find(wanted.begin(), wanted.end(), layer) == wanted.end()) return Var();
    ReadingOptions options;
    options.max_values = most_values;
    spectra.push_back(read_spectrum(mixer.realise(terms, mixed), layer, options));
    if (spectra.back().sampled())
      fail_usage(
          fmt::format("intervention: layer {} ({}) has {} eigenvalues on this batch, more than are kept to "
                      "freeze to; lower spectral.batch",
                      layer, mixer.family(), spectra.back().full_count));
    return Var();
  };
  model.features(forward, input);
  return spectra;
}

std::unique_ptr<Model> source_model(const Intervention& one, const std::string& initial, const Model& model) {
  const std::string path = one.source == "initial" ? initial : one.source;
  if (!std::filesystem::exists(path))
    fail_usage(fmt::format("intervention '{}': there is no file '{}' of weights", one.text, path));
  LoadedModel loaded = load_model(path, model.parameters().dtype(), model.parameters().device());
  if (loaded.model->mixers().size() != model.mixers().size())
    fail_usage(fmt::format("intervention '{}': '{}' has {} layers, this model {}", one.text, path,
                           loaded.model->mixers().size(), model.mixers().size()));
  return std::move(loaded.model);
}

}  // namespace

std::vector<Intervention> interventions_of(const RunConfig& config) {
  std::vector<Intervention> all;
  for (const std::string& text : config.spectral.intervention)
    for (Intervention& one : parse_interventions(text)) all.push_back(std::move(one));
  return all;
}

std::shared_ptr<Interventions> resolve_interventions(Context& ctx, const RunConfig& config, const Task& task,
                                                     std::vector<Intervention> list, const Model& averaged,
                                                     const std::string& initial, bool per_batch) {
  for (const Intervention& one : list)
    for (const int64_t layer : one.layers)
      if (layer >= int64_t(averaged.mixers().size()))
        fail_usage(fmt::format("intervention '{}': the model has layers 0 to {}", one.text,
                               averaged.mixers().size() - 1));
  auto resolved = std::make_shared<Interventions>(list);
  DeviceBatch data(averaged.parameters().device(), averaged.parameters().dtype());
  for (size_t n = 0; n < list.size(); ++n) {
    const Intervention& one = list[n];
    if (one.change != Change::freeze) continue;
    if (data.sequences() == 0) load_spectrum_batch(data, config, task, config.spectral.batch);
    const std::unique_ptr<Model> other = one.averages() ? nullptr : source_model(one, initial, averaged);
    for (LayerSpectrum& spectrum : spectra_of(ctx, other ? *other : averaged, data.input(), one.layers)) {
      if (one.averages()) {
        resolved->freeze(n, one.source == "mean" ? frozen_mean(spectrum) : frozen_profile(spectrum));
      } else if (!spectrum.time_dependent()) {
        resolved->freeze(n, std::move(spectrum));
      } else if (!per_batch) {
        fail_usage(fmt::format(
            "intervention '{}': the eigenvalues of layer {} ({}) depend on the input: they can be "
            "frozen to other weights' in evaluation only (`eigentrace intervene`); freeze=mean or "
            "freeze=profile",
            one.text, spectrum.layer, name_of(spectrum.family)));
      }
    }
  }
  return resolved;
}

void check_trainable(const std::vector<Intervention>& list, const Model& model) {
  const std::vector<const Mixer*> mixers = model.mixers();
  for (const Intervention& one : list)
    for (size_t layer = 0; layer < mixers.size(); ++layer)
      if (one.in_layer(int64_t(layer)) && !mixers[layer]->has_mix_with())
        fail_usage(
            fmt::format("spectral.intervention '{}': {} (layer {}) has no differentiable form with other "
                        "eigenvalues; linear and norm attention, Mamba-2, LRU and S5 have, and `eigentrace "
                        "intervene` evaluates any",
                        one.text, mixers[layer]->family(), layer));
}

std::shared_ptr<const Interventions> training_interventions(Context& ctx, const RunConfig& config,
                                                            const Task& task, const Model& model,
                                                            const std::string& initial) {
  std::vector<Intervention> list = interventions_of(config);
  if (list.empty()) return nullptr;
  check_trainable(list, model);
  const bool frozen = std::any_of(list.begin(), list.end(),
                                  [](const Intervention& one) { return one.change == Change::freeze; });
  std::unique_ptr<Model> first;  // averages are those of the first weights, however far training has come
  if (frozen) first = load_model(initial, model.parameters().dtype(), model.parameters().device()).model;
  return resolve_interventions(ctx, config, task, std::move(list), frozen ? *first : model, initial, false);
}

InterventionHook::InterventionHook(std::shared_ptr<Interventions> interventions, const Model& model,
                                   const std::string& initial, InterventionPath path)
    : interventions_(std::move(interventions)), intervener_(interventions_, path) {
  const std::vector<Intervention>& list = interventions_->list();
  for (size_t n = 0; n < list.size(); ++n) {
    if (list[n].change != Change::freeze || list[n].averages()) continue;
    bool open = false;
    for (size_t layer = 0; layer < model.mixers().size(); ++layer)
      open = open || (list[n].in_layer(int64_t(layer)) && !interventions_->frozen(n, int64_t(layer)));
    if (open) sources_.emplace_back(n, source_model(list[n], initial, model));
  }
}

PassHook InterventionHook::hook() {
  return [this](Forward& forward, const ModelInput& input) {
    for (const auto& [n, model] : sources_)
      for (LayerSpectrum& spectrum :
           spectra_of(forward.ctx(), *model, input, interventions_->list()[n].layers))
        interventions_->freeze(n, std::move(spectrum));
    intervener_.attach(forward);
  };
}

}  // namespace eigentrace
