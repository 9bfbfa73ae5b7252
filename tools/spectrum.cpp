#include "tools/spectrum.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "nn/published.h"
#include "tensor/error.h"

namespace eigentrace {

namespace {

class Collector {
 public:
  Collector(const Model& model, const SpectrumRequest& request, int64_t keep)
      : request_(request), keep_(keep), layers_(model.mixers().size()), lambdas_(layers_.size()) {}

  /// Right after a mixer's recurrence: what the layer computed.
  void on_mixer(int layer, const Mixer& mixer, const Terms& terms, const Mixed& mixed) {
    if (wants_exact()) {
      std::vector<Tensor> sources;
      for (const LambdaSource& source : mixer.lambda_sources(terms, mixed))
        sources.push_back(source.values.clone(Device{}, source.values.dtype()));
      on_sources(layer, mixer, sources);
    }
    if (request_.check)
      layers_.at(size_t(layer)).replay =
          replay(mixer.realise(terms, mixed), mixed.y.value(), request_.replay);
  }

  /// The same later, from copies on the host.
  void on_sources(int layer, const Mixer& mixer, const std::vector<Tensor>& sources) {
    lambdas_.at(size_t(layer)) = mixer.lambda(sources);
  }

  /// Replaced y against the simulation of the altered system.
  void on_altered(int layer, const Mixer& mixer, const Terms& terms, const Mixed& mixed, const Var& y) {
    const std::vector<double> truth = y.value().to_vector<double>();
    const std::vector<double> simulated =
        AlteredSimulation()(mixer.realise(terms, mixed), layer, *request_.interventions);
    ReplayPart part;
    for (size_t at = 0; at < truth.size(); ++at) {
      part.y_norm += truth[at] * truth[at];
      part.error_norm += (simulated[at] - truth[at]) * (simulated[at] - truth[at]);
    }
    part.y_norm = std::sqrt(part.y_norm), part.error_norm = std::sqrt(part.error_norm);
    part.dead = part.y_norm == 0 && part.error_norm == 0;
    part.relative_error = part.dead ? 0 : part.error_norm / part.y_norm;
    ReplayResult result;
    result.layer = part, result.heads = {part}, result.sequences = y.dim(0);
    layers_.at(size_t(layer)).replay = result;
  }

  void on_published(int layer, LayerSpectrum spectrum) {
    layers_.at(size_t(layer)).published = std::move(spectrum);
  }
  bool wants_published() const { return request_.published || request_.compare; }

  std::vector<LayerRecord> finish() {
    std::vector<LayerRecord> records;
    for (size_t l = 0; l < layers_.size(); ++l) {
      LayerRecord& record = layers_[l];
      if (lambdas_[l]) {
        record.spectrum = read_spectrum(*lambdas_[l], int64_t(l), request_.reading);
        lambdas_[l].reset();
        if (request_.interventions) request_.interventions->alter(record.spectrum);
      }
      if (request_.compare && record.published)
        record.comparison = compare_readings(record.spectrum, *record.published);
      Binning binning = Binning::exact;
      if (request_.published && !request_.compare) {
        if (!record.published) continue;
        record.spectrum = std::move(*record.published);
        record.published.reset();
        binning = Binning::published;
      }
      record.statistics = layer_statistics(record.spectrum, binning);
      if (keep_ > 0 && binning == Binning::exact) record.spectrum = thinned(record.spectrum, keep_);
      records.push_back(std::move(record));
    }
    return records;
  }

 private:
  bool wants_exact() const { return !request_.published || request_.compare; }
  const SpectrumRequest request_;
  const int64_t keep_;
  std::vector<LayerRecord> layers_;
  std::vector<std::optional<Lambda>> lambdas_;  // on the host
};

/// Full float32 for as long as it lives: η never comes out of a TF32 product.
struct FullPrecision {
  Context& ctx;
  Precision before = std::exchange(ctx.precision, Precision::fp32);
  ~FullPrecision() { ctx.precision = before; }
};

/// What a record says about itself.
std::vector<std::pair<std::string, std::string>> about(const Model& model, const Shape& input,
                                                       const char* pass, bool published, bool masks) {
  return {{"reading", published ? "published" : "exact"},
          {"pass", pass},
          {"sequences", std::to_string(input[0])},
          {"steps", std::to_string(input[1])},
          {"layers", std::to_string(model.mixers().size())},
          {"mixer", model.mixers().empty() ? "" : model.mixers()[0]->family()},
          {"dtype", name_of(model.parameters().dtype())},
          {"published_dropout", masks ? "yes" : "no"}};
}

}  // namespace

std::function<SpectrumRecord()> begin_spectra(Context& ctx, const Model& model, const ModelInput& input,
                                              const SpectrumRequest& request, int64_t keep) {
  const FullPrecision precision{ctx};
  const auto kept = std::make_shared<Collector>(model, request, keep);
  Collector& collector = *kept;
  const bool masks = request.dropout && collector.wants_published();
  const auto pass = [&](bool exact, bool published) {
    Intervener intervener(request.interventions, InterventionPath::automatic);
    Tape tape(ctx, false);
    Forward forward(tape, model.parameters());
    forward.dropout = masks && published;
    forward.encoder_dropout = false;
    if (exact)
      forward.on_mixer = [&](int layer, const Mixer& mixer, const Terms& terms, const Mixed& mixed) {
        collector.on_mixer(layer, mixer, terms, mixed);
        if (!request.interventions) return Var();
        const Var y = intervener(forward, layer, mixer, terms, mixed);
        if (request.check && y.defined()) collector.on_altered(layer, mixer, terms, mixed, y);
        return y;
      };
    else if (request.interventions)
      intervener.attach(forward);
    if (published)
      watch_published(forward, model, [&](int layer, LayerSpectrum spectrum) {
        collector.on_published(layer, std::move(spectrum));
      });
    model.features(forward, input);
  };
  if (masks) {  // the exact reading and the replay never see a mask: a pass of their own
    if (request.check || request.compare) pass(true, false);
    pass(false, true);
  } else {
    pass(true, collector.wants_published());
  }
  SpectrumRecord record;
  const Shape shape = input.tokens.ids.defined() ? input.tokens.ids.shape() : input.values.shape();
  record.about = about(model, shape, "evaluation", request.published && !request.compare, masks);
  return [kept, record]() mutable {
    record.layers = kept->finish();
    return record;
  };
}

SpectrumRecord step_spectra(const Model& model, const std::vector<StepReading::Layer>& layers,
                            const Shape& input, const SpectrumRequest& request, int64_t keep) {
  Collector collector(model, request, keep);
  for (const StepReading::Layer& layer : layers)
    collector.on_sources(layer.layer, *layer.mixer, layer.sources);
  SpectrumRecord record;
  record.about = about(model, input, "training step", false, false);
  record.layers = collector.finish();
  return record;
}

SpectrumRecord model_spectra(Context& ctx, const Model& model, const ModelInput& input,
                             const SpectrumRequest& request) {
  return begin_spectra(ctx, model, input, request)();
}

int64_t study_batch(const std::string& task) {
  if (task.rfind("imdb", 0) == 0 || task.rfind("listops", 0) == 0) return 32;
  return task.rfind("wikitext", 0) == 0 ? 8 : 64;
}

Batch spectrum_batch(const Task& task, int64_t examples, bool full_length) {
  const Split split = task.size(Split::test) > 0         ? Split::test
                      : task.size(Split::validation) > 0 ? Split::validation
                                                         : Split::train;
  std::vector<int64_t> indices(static_cast<size_t>(std::min(examples, task.size(split))));
  if (indices.empty())
    fail_usage("spectrum_batch: examples: expected at least 1, found " + std::to_string(examples));
  std::iota(indices.begin(), indices.end(), 0);
  Padding padding;
  if (full_length) padding.time_multiple = task.shape(split).time;
  Batch batch;
  task.make(split, indices, batch, padding);
  sort_tokens(batch, task.shape(split).vocabulary);
  return batch;
}

double replay_tolerance(DType dtype, Family family) {
  if (dtype == DType::f32) return 1e-4;
  return family == Family::s4 ? 1e-8 : 1e-10;
}

bool replay_agrees(const SpectrumRecord& record, double tolerance) {
  return std::all_of(record.layers.begin(), record.layers.end(), [&](const LayerRecord& layer) {
    return !layer.replay || layer.replay->agrees(tolerance);
  });
}

}  // namespace eigentrace
