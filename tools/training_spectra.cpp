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
    : config_(config), folder_(folder), task_(task), model_(model), interventions_(std::move(interventions)) {
  const SpectralConfig& spectral = config_.spectral;
  const ParameterList& trained = model_.parameters();
  if (spectral.every > 0 && spectral.pass == SpectralPass::training && spectral.reading == Reading::exact &&
      type_of(config_) == trained.dtype())
    in_step_ = std::make_unique<StepReading>(trained.device(), spectral.batch);
}

TrainingSpectra::~TrainingSpectra() {
  if (worker_.valid()) worker_.wait();
}

bool TrainingSpectra::due(int64_t step) const {
  return config_.spectral.every > 0 && step % config_.spectral.every == 0;
}

SpectrumRequest TrainingSpectra::request() const {
  SpectrumRequest request;
  ask_for(config_.spectral.reading, request);
  request.reading.channels = config_.spectral.channels;
  request.interventions = interventions_;
  request.reading.max_values = eigenvalues_along_training;
  return request;
}

void TrainingSpectra::wait() {
  const Clock::time_point start = Clock::now();
  finish();
  waited_ = seconds_since(start);
}

void TrainingSpectra::work(int64_t step, std::vector<std::pair<std::string, std::string>> about,
                           std::function<SpectrumRecord()> rest) {
  // A GPU is driven by this thread: the worker leaves it a core.
  const bool spare = model_.parameters().device().is_cuda();
  const int threads = std::max(1, omp_get_max_threads() - (spare ? 1 : 0));
  const std::string stage = fmt::format("step{}", step);
  about.insert(about.begin(), {{"stage", stage},
                               {"step", fmt::format("{}", step)},
                               {"task", task_.name()},
                               {"seed", fmt::format("{}", config_.seed)},
                               {"made_by", version_line()},
                               {"wait_seconds", fmt::format("{:.4f}", waited_)}});
  worker_ = std::async(std::launch::async, [=, about = std::move(about), rest = std::move(rest),
                                            path = folder_.spectrum(stage)]() mutable {
    omp_set_num_threads(threads);  // a new thread knows nothing of --threads
    const Clock::time_point begin = Clock::now();
    SpectrumRecord record = rest();
    about.emplace_back("work_seconds", fmt::format("{:.4f}", seconds_since(begin)));
    record.about.insert(record.about.begin(), about.begin(), about.end());
    write_spectrum(path, record);
  });
}

void TrainingSpectra::take(int64_t step, const Batch& batch) {
  const Shape input{std::min(batch.batch, config_.spectral.batch), batch.valid_time};
  work(step, {}, [this, input, request = request()] {
    return step_spectra(model_, in_step_->wait(input[1]), input, request, eigenvalues_along_training);
  });
}

void TrainingSpectra::read(Context& ctx, int64_t step) {
  wait();
  const Clock::time_point start = Clock::now();
  const DType dtype = type_of(config_);
  const ParameterList& trained = model_.parameters();
  if (!data_) {
    data_ = std::make_unique<DeviceBatch>(trained.device(), dtype);
    load_spectrum_batch(*data_, config_, task_, config_.spectral.batch);
    if (dtype != trained.dtype()) copy_ = make_model(config_.model, config_.seed, dtype, trained.device());
  }
  if (copy_) copy_weights(model_, *copy_);
  auto rest =
      begin_spectra(ctx, copy_ ? *copy_ : model_, data_->input(), request(), eigenvalues_along_training);
  work(step, {{"pass_seconds", fmt::format("{:.4f}", seconds_since(start))}}, std::move(rest));
}

void TrainingSpectra::finish() {
  if (worker_.valid()) worker_.get();
}

}  // namespace eigentrace
