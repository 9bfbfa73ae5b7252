#include "tools/run_spectra.h"

#include <fmt/format.h>

#include <filesystem>

#include "nn/checkpoint.h"
#include "tasks/config.h"
#include "tools/interventions.h"
#include "tools/progress.h"
#include "tools/version.h"

namespace eigentrace {

void load_spectrum_batch(DeviceBatch& data, const RunConfig& config, const Task& task, int64_t examples) {
  const bool ssm = std::holds_alternative<SsmConfig>(config.model);
  data.load(spectrum_batch(task, examples, ssm), ssm && !task.shape(Split::test).fixed_length,
            LossAverage::labelled);
}

void ask_for(Reading reading, SpectrumRequest& request) {
  request.published = reading == Reading::published;
  request.compare = reading == Reading::both;
}

SpectrumRecord weights_spectra(const std::string& weights, const std::string& stage,
                               const RunSpectraOptions& options) {
  const RunConfig config = checkpoint_config(weights);
  const DType dtype = config.spectral.dtype == SpectralPrecision::f64 ? DType::f64 : DType::f32;
  const LoadedModel loaded = load_model(weights, dtype, options.device);
  const std::unique_ptr<Task> task = make_task(config.dataset);
  if (const std::vector<std::string> symbols = checkpoint_symbols(weights); !symbols.empty())
    check_symbols(*task, symbols);
  const bool published = options.request.published || options.request.compare;
  const int64_t usual = published ? study_batch(task->name()) : config.spectral.batch;
  DeviceBatch data(options.device, dtype);
  load_spectrum_batch(data, config, *task, options.batch > 0 ? options.batch : usual);
  Context ctx(options.device);

  SpectrumRequest request = options.request;
  if (!request.interventions && !config.spectral.intervention.empty()) {
    const std::filesystem::path beside = std::filesystem::path(weights).parent_path() / "initial.safetensors";
    request.interventions = training_interventions(ctx, config, *task, *loaded.model, beside.string());
  }
  request.reading.channels = config.spectral.channels;
  Progress* line = nullptr;
  std::unique_ptr<Progress> progress;
  if (!options.quiet)
    request.reading.progress = [&](int64_t done, int64_t total, double) {
      if (!line) progress = std::make_unique<Progress>("eigenproblems", total), line = progress.get();
      line->update(done, stage);
    };
  SpectrumRecord record = model_spectra(ctx, *loaded.model, data.input(), request);
  record.about.insert(record.about.begin(), {{"stage", stage},
                                             {"step", fmt::format("{}", loaded.step)},
                                             {"task", task->name()},
                                             {"seed", fmt::format("{}", config.seed)},
                                             {"made_by", version_line()}});
  return record;
}

SpectrumRecord run_spectra(const RunFolder& folder, const std::string& stage,
                           const RunSpectraOptions& options) {
  const std::string weights = stage == "initial" ? folder.initial() : folder.checkpoint();
  RunSpectraOptions asked = options;
  if (!asked.request.published && !asked.request.compare)
    ask_for(checkpoint_config(weights).spectral.reading, asked.request);
  const SpectrumRecord record = weights_spectra(weights, stage, asked);
  write_spectrum(folder.spectrum(stage), record);
  return record;
}

}  // namespace eigentrace
