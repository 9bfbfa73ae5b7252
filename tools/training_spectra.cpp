#include "tools/training_spectra.h"

#include <fmt/format.h>
#include <omp.h>

#include <chrono>

#include "tools/version.h"

namespace eigentrace {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

DType type_of(const RunConfig& config) {
  return config.spectral.dtype == SpectralPrecision::f64 ? DType::f64 : DType::f32;
}

/// The values of `model` in another type.
void copy_weights(const Model& model, Model& to) {
  const auto copy = [](const Tensor& from, const Tensor& into) {
    into.copy_from(from.clone(from.device(), into.dtype()));
  };
  for (size_t n = 0; n < model.parameters().parameters().size(); ++n)
    copy(model.parameters().parameters()[n].value, to.parameters().parameters()[n].value);
  for (size_t n = 0; n < model.parameters().buffers().size(); ++n)
    copy(model.parameters().buffers()[n].value, to.parameters().buffers()[n].value);
}

}  // namespace

TrainingSpectra::TrainingSpectra(const RunConfig& config, const RunFolder& folder, const Task& task,
                                 const Model& model, std::shared_ptr<const Interventions> interventions)
    : config_(config),
      folder_(folder),
      task_(task),
      model_(model),
      interventions_(std::move(interventions)) {}

TrainingSpectra::~TrainingSpectra() {
  if (worker_.valid()) worker_.wait();
}

bool TrainingSpectra::due(int64_t step) const {
  return config_.spectral.every > 0 && step % config_.spectral.every == 0;
}

void TrainingSpectra::read(Context& ctx, int64_t step) {
  Clock::time_point start = Clock::now();
  finish();
  const double waited = seconds_since(start);
  start = Clock::now();
  const DType dtype = type_of(config_);
  const ParameterList& trained = model_.parameters();
  if (!data_) {
    data_ = std::make_unique<DeviceBatch>(trained.device(), dtype);
    load_spectrum_batch(*data_, config_, task_, config_.spectral.batch);
    if (dtype != trained.dtype()) copy_ = make_model(config_.model, config_.seed, dtype, trained.device());
  }
  if (copy_) copy_weights(model_, *copy_);
  SpectrumRequest request;
  ask_for(config_.spectral.reading, request);
  request.reading.channels = config_.spectral.channels;
  request.interventions = interventions_;
  request.reading.max_values = eigenvalues_along_training;
  auto rest =
      begin_spectra(ctx, copy_ ? *copy_ : model_, data_->input(), request, eigenvalues_along_training);
  const double passed = seconds_since(start);
  const std::string stage = fmt::format("step{}", step);
  worker_ = std::async(std::launch::async, [=, rest = std::move(rest), path = folder_.spectrum(stage),
                                            task = task_.name(), seed = config_.seed,
                                            threads = omp_get_max_threads()]() mutable {
    omp_set_num_threads(threads);  // a new thread knows nothing of --threads
    const Clock::time_point begin = Clock::now();
    SpectrumRecord record = rest();
    record.about.insert(record.about.begin(), {{"stage", stage},
                                               {"step", fmt::format("{}", step)},
                                               {"task", task},
                                               {"seed", fmt::format("{}", seed)},
                                               {"made_by", version_line()},
                                               {"pass_seconds", fmt::format("{:.4f}", passed)},
                                               {"work_seconds", fmt::format("{:.4f}", seconds_since(begin))},
                                               {"wait_seconds", fmt::format("{:.4f}", waited)}});
    write_spectrum(path, record);
  });
}

void TrainingSpectra::finish() {
  if (worker_.valid()) worker_.get();
}

}  // namespace eigentrace
