#include "tools/trainer.h"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <filesystem>

#include "tasks/mad.h"
#include "tensor/blas.h"
#include "tensor/error.h"
#include "tensor/io/file.h"
#include "tensor/kernels.h"
#include "tools/failure.h"
#include "tools/interventions.h"
#include "tools/progress.h"
#include "tools/training_spectra.h"
#include "tools/version.h"

namespace eigentrace {
namespace {

/// Steps of a GPU whose results may be unseen: a failure is found so many steps late at most.
constexpr size_t most_unseen_steps = 64;

volatile std::sig_atomic_t stop_signal = 0;

/// While it lives, SIGINT and SIGTERM only set a flag, which the training loop reads after each step. A
/// second signal of the same kind ends the program at once.
class SignalGuard {
 public:
  SignalGuard() {
    stop_signal = 0;
    struct sigaction action = {};
    action.sa_handler = [](int signal) { stop_signal = signal; };
    action.sa_flags = static_cast<int>(SA_RESETHAND);
    sigaction(SIGINT, &action, &old_int_);
    sigaction(SIGTERM, &action, &old_term_);
  }
  ~SignalGuard() {
    sigaction(SIGINT, &old_int_, nullptr);
    sigaction(SIGTERM, &old_term_, nullptr);
  }
  SignalGuard(const SignalGuard&) = delete;
  SignalGuard& operator=(const SignalGuard&) = delete;

 private:
  struct sigaction old_int_, old_term_;
};

LossAverage loss_average(const RunConfig& config) {
  return config.train.loss_mean == LossMean::all_positions ? LossAverage::all_positions
                                                           : LossAverage::labelled;
}

double scalar(const Tensor& tensor) { return tensor.to_vector<double>()[0]; }

}  // namespace

namespace {

/// The model a configuration describes for a task, with what the data decide filled in.
std::unique_ptr<Model> model_for(RunConfig& config, const Task& task, const TrainerOptions& options) {
  fit_model(config.model, task.shape(Split::train));
  return make_model(config.model, config.seed, options.dtype, options.device);
}

int64_t checked_examples(const RunConfig& config, const Task& task) {
  const int64_t examples = task.size(Split::train);
  if (config.train.batch_size > examples)
    fail_usage(fmt::format("train.batch_size is {}, but the training split has {} examples",
                           config.train.batch_size, examples));
  return examples;
}

}  // namespace

Trainer::Trainer(const RunConfig& config, const RunFolder& folder, const TrainerOptions& options,
                 RunInfo info)
    : config_(config),
      folder_(folder),
      options_(options),
      task_(make_task(config.dataset)),
      model_(model_for(config_, *task_, options)),
      rates_(config_.train, checked_examples(config_, *task_)),
      optimiser_(model_->parameters(),
                 make_groups(model_->parameters(), config_.model, config_.train, config_.dialect),
                 optimiser_options(config_.train)),
      ctx_(options.device),
      data_(options.device, options.dtype),
      train_step_(ctx_, *model_, optimiser_, rates_, config_.seed, options.capture),
      info_(std::move(info)),
      published_(config_.train.schedule == ScheduleKind::published),
      masked_(masked_pooling(*model_, *task_)),
      average_(loss_average(config_)) {
  ctx_.precision = options.precision;
  ctx_.attention_precision = options.attention_precision;
  for (const Tensor& tensor : touched()) before_.tensors.push_back(tensor.clone());
  info_.version = version();
  info_.commit = commit();
  info_.blas_core = blas_core();
  info_.device = to_string(options.device);
  info_.dtype = options.dtype == DType::f64 ? "f64" : "f32";
  info_.precision = name_of(options.precision);
  info_.attention_precision = name_of(options.attention_precision.value_or(options.precision));
  info_.threads = omp_get_max_threads();
  info_.parameters = model_->parameters().count();
  info_.total_steps = rates_.total_steps();
  info_.state = "running";
  info_.reason.clear();
}

Trainer::Trainer(const RunConfig& config, const RunFolder& folder, const TrainerOptions& options)
    : Trainer(config, folder, options, RunInfo{}) {
  info_.name = std::filesystem::path(folder_.path()).filename();
  info_.task = task_->name();
  info_.family = model_->mixers().empty() ? "" : model_->mixers()[0]->family();
  info_.seed = config_.seed;
  check_trainable(interventions_of(config_), *model_);
  folder_.prepare();  // not before everything that can be wrong with the configuration has been looked at
  write_atomically(folder_.config(), to_yaml(config_));
  save_weights(folder_.initial(), *model_, config_, notes());
  folder_.write_info(info_);
}

std::unique_ptr<Trainer> Trainer::resume(const RunFolder& folder, const TrainerOptions& options) {
  RunInfo info = folder.read_info();
  if (info.state == "finished") fail_usage(fmt::format("train: the run in '{}' is finished", folder.path()));
  TrainerOptions same = options;
  same.dtype = info.dtype == "f64" ? DType::f64 : DType::f32;
  same.precision = parse_precision(info.precision);
  same.attention_precision = parse_precision(info.attention_precision);
  check_precision(same.precision, options.device), check_precision(*same.attention_precision, options.device);
  const RunConfig config = read_config_file(folder.config()).config;
  auto trainer = std::unique_ptr<Trainer>(new Trainer(config, folder, same, std::move(info)));
  if (std::filesystem::exists(folder.checkpoint())) trainer->load(folder.checkpoint());
  return trainer;
}

std::unique_ptr<Trainer> Trainer::failed(const RunFolder& folder, const TrainerOptions& options) {
  const RunConfig config = checkpoint_config(folder.failed_state());
  auto trainer = std::unique_ptr<Trainer>(new Trainer(config, folder, options, folder.read_info()));
  trainer->load(folder.failed_state());
  trainer->set_interventions();
  return trainer;
}

void Trainer::load(const std::string& path) {
  if (const std::vector<std::string> symbols = checkpoint_symbols(path); !symbols.empty())
    check_symbols(*task_, symbols);
  const TrainState state = load_checkpoint(path, *model_, optimiser_);
  step_ = state.step;
  rates_.set_plateau(state.plateau);
  visit_state([&](const char* key, auto& value) {
    const auto found = state.numbers.find(key);
    if (found == state.numbers.end()) fail(fmt::format("{}: the state has no '{}'", path, key));
    value = static_cast<std::remove_reference_t<decltype(value)>>(found->second);
  });
  train_step_.start(step_);
}

void Trainer::set_interventions() {
  interventions_ = training_interventions(ctx_, config_, *task_, *model_, folder_.initial());
  if (!interventions_) return;
  intervener_ = std::make_unique<Intervener>(interventions_, InterventionPath::ops);
  hook_ = [this](Forward& forward, const ModelInput&) { intervener_->attach(forward); };
  train_step_.set_hook(hook_);
}

LoaderOptions Trainer::batch_order() const {
  LoaderOptions order;
  order.batch_size = config_.train.batch_size;
  order.seed = config_.seed;
  order.time_multiple = time_multiple(*model_, *task_, options_.device);
  order.threads =
      options_.device.is_cuda() ? 4 : 1;  // a GPU takes more batches a second than one thread makes
  order.buffers = order.threads + 2;
  return order;
}

LoaderPosition Trainer::position(int64_t step) const {
  const int64_t epoch = rates_.steps_per_epoch();
  return {step / epoch, step % epoch};
}

void Trainer::plan(const Batch& batch, StepReading* reading) {
  data_.load(batch, masked_, average_);
  const StepPlan plan = train_step_.plan(data_.input(), data_.labels(), reading);
  const auto mib = [](size_t bytes) { return static_cast<double>(bytes) / 1048576.0; };
  if (plan.peak > ctx_.slab().capacity())
    fail(fmt::format(
        "a training step needs {:.0f} MiB of step memory (most of it in use at {}), {} has {:.0f}; "
        "use a smaller batch or model",
        mib(plan.peak), plan.label, to_string(options_.device), mib(ctx_.slab().capacity())));
  info_.peak_step_memory_mib = mib(plan.peak);
  folder_.write_info(info_);
}

void Trainer::step(const Batch& batch, StepReading* reading) {
  if (labels_.empty()) remember();
  data_.load(batch, masked_, average_, &ctx_);
  train_step_.run(data_.input(), data_.labels(), reading);
  labels_.push_back(static_cast<double>(batch.label_count));
  ++step_;
  // A look at a GPU's results waits for it, so there it is taken seldom.
  if (!options_.device.is_cuda() || labels_.size() >= most_unseen_steps) collect();
}

void Trainer::collect() {
  const std::vector<StepResult> results = train_step_.results();
  for (size_t i = 0; i < results.size(); ++i) {
    const StepResult& result = results[i];
    if (result.failed) fail_step(result.step);
    sums_.loss += result.loss_sum, sums_.correct += result.correct, sums_.labels += labels_[i];
    sums_.norm += result.norm, sums_.steps += 1;
  }
  labels_.clear();
}

std::vector<Tensor> Trainer::touched() const {
  std::vector<Tensor> tensors;
  for (const Buffer& b : model_->parameters().buffers()) tensors.push_back(b.value);
  if (config_.train.update_step > 1)
    for (const auto& [name, tensor] : optimiser_.state())
      if (name.starts_with("optimiser.sum/")) tensors.push_back(tensor);
  return tensors;
}

void Trainer::remember() {
  before_.step = step_, before_.optimiser_steps = optimiser_.steps();
  const std::vector<Tensor> tensors = touched();
  for (size_t i = 0; i < tensors.size(); ++i) kernels::copy(ctx_, tensors[i], before_.tensors[i]);
}

void Trainer::restore(int64_t step) {
  optimiser_.set_steps(before_.optimiser_steps + step - before_.step);
  std::vector<Tensor> tensors = touched();
  for (size_t i = 0; i < tensors.size(); ++i) kernels::copy(ctx_, before_.tensors[i], tensors[i]);
  step_ = step;
  labels_.clear();
  train_step_.start(step);
}

StepLook Trainer::look_at(const Batch& batch) {
  remember();
  data_.load(batch, masked_, average_);
  StepLook look;
  try {
    const Loss loss = train_step_.forward_backward(ctx_, data_.input(), data_.labels(), true);
    look.loss = scalar(loss.loss_sum) / std::max(static_cast<double>(batch.label_count), 1.0);
    look.not_finite = first_not_finite(model_->parameters(), true);
    look.gradient_norm = gradient_norm(model_->parameters());
    if (look.not_finite.empty() && !std::isfinite(look.gradient_norm))
      look.not_finite = "the gradient's norm overflows though every value is finite";
  } catch (const Error& error) {
    look.not_finite = error.what();
  }
  restore(step_);
  return look;
}

void Trainer::fail_step(int64_t step) {
  // This step and those after it moved no weight. The same pass again, looking at every value, names the
  // culprit. (Where several steps were under way, the running statistics are those from before the first of
  // them.)
  restore(step);
  Loader loader(*task_, Split::train, batch_order(), position(step));
  const Batch& batch = *loader.next();
  std::string found = look_at(batch).not_finite;
  if (found.empty()) found = "a value was not finite, but not when the step was repeated";
  if (const std::string weight = first_not_finite(model_->parameters(), false); !weight.empty())
    found += fmt::format("; before this step already: {}", weight);
  std::string kept = fmt::format("`eigentrace failure {}` shows it again", folder_.path());
  try {
    write_failed_batch(folder_.failed_batch(), {batch, step_, config_.seed});
    save_checkpoint(folder_.failed_state(), *model_, optimiser_, config_, state(), notes());
  } catch (const std::exception& error) {
    kept = fmt::format("the step could not be kept: {}", error.what());
  }
  fail(fmt::format("step {}: {}; the last checkpoint is unchanged; lower train.lr or use --dtype f64; {}",
                   step_, found, kept));
}

bool Trainer::evaluation_due() const {
  const int64_t epoch = rates_.steps_per_epoch();
  if (!config_.train.steps()) return step_ % epoch == 0;
  const int64_t every = config_.train.eval_every;
  // The published step trainer evaluates after step s = every, 2·every, … counted from 0, and not at the end.
  if (published_) return step_ > 1 && (step_ - 1) % every == 0;
  return step_ == rates_.total_steps() || (every > 0 && step_ % every == 0);
}

void Trainer::log_row(AppendFile& metrics, double seconds) {
  MetricsRow row;
  row.step = step_;
  row.split = "train";
  row.loss = sums_.loss / std::max(sums_.labels, 1.0);
  row.accuracy = sums_.correct / std::max(sums_.labels, 1.0);
  row.learning_rate = rates_.at(GroupKind::regular, step_ - 1);
  row.gradient_norm = sums_.norm / sums_.steps;
  row.steps_per_second = seconds > 0 ? sums_.steps / seconds : 0;
  metrics.append_line(to_json(row));
  if (tensorboard_) tensorboard_->add(row);
  metrics_bytes_ = metrics.size();
  shown_loss_ = row.loss, shown_accuracy_ = row.accuracy;
  sums_ = {};
}

void Trainer::evaluate_now(AppendFile& metrics) {
  const Split split = config_.train.eval_split == EvalSplit::test ? Split::test : Split::validation;
  const int64_t batch =
      config_.train.eval_batch_size > 0 ? config_.train.eval_batch_size : config_.train.batch_size;
  if (!evaluator_)
    evaluator_ = std::make_unique<Evaluator>(
        ctx_, *model_, *task_,
        EvaluationOptions{split, batch, published_, config_.train.eval_examples, hook_});
  const Evaluation evaluation = evaluator_->run();
  MetricsRow row;
  row.step = step_;
  row.split = split_name(split);
  row.loss = evaluated_loss_ = evaluation.loss;
  row.accuracy = evaluation.accuracy;
  row.macro_accuracy = evaluation.macro_accuracy;
  evaluated_accuracy_ = evaluation.score();
  metrics.append_line(to_json(row));
  if (tensorboard_) tensorboard_->add(row);
  metrics_bytes_ = metrics.size();
  const double scale = rates_.plateau().scale;
  rates_.evaluated(evaluation.score());
  if (rates_.plateau().scale != scale) train_step_.rates_changed();
}

TrainState Trainer::state() {
  TrainState state;
  state.step = step_;
  state.plateau = rates_.plateau();
  visit_state([&](const char* key, auto& value) { state.numbers[key] = static_cast<double>(value); });
  return state;
}

CheckpointNotes Trainer::notes() const { return {task_->symbols(), version_line()}; }

void Trainer::save(AppendFile& metrics) {
  // The last step's update may have overflowed, which no pass has seen yet: a checkpoint that training cannot
  // go on from must not replace one that it can.
  std::string wrong = first_not_finite(model_->parameters(), false);
  for (const auto& [name, tensor] : optimiser_.state())
    if (wrong.empty() && !all_finite(tensor)) wrong = fmt::format("'{}' is not finite", name);
  if (!wrong.empty()) {
    std::filesystem::remove(folder_.failed_batch());  // of an earlier failure
    save_checkpoint(folder_.failed_state(), *model_, optimiser_, config_, state(), notes());
    fail(fmt::format("step {}: its update overflowed: {}; the last checkpoint is unchanged; lower train.lr",
                     step_ - 1, wrong));
  }
  metrics.sync();  // before the checkpoint that counts on its bytes
  save_checkpoint(folder_.checkpoint(), *model_, optimiser_, config_, state(), notes());
  info_.step = step_;
  folder_.write_info(info_);
}

bool Trainer::good_enough() const {
  const std::optional<double>& stop = config_.train.stop_criterion;
  return stop && evaluated_accuracy_ > *stop;
}

std::string Trainer::progress_text() const {
  std::string text = fmt::format("loss {:.4f}  accuracy {:.3f}", shown_loss_, shown_accuracy_);
  if (evaluated_accuracy_ >= 0)
    text += fmt::format("  {} {:.3f}", config_.train.eval_split == EvalSplit::test ? "test" : "validation",
                        evaluated_accuracy_);
  return text;
}

RunInfo Trainer::run() {
  using Clock = std::chrono::steady_clock;
  const auto seconds_since = [](Clock::time_point t) {
    return std::chrono::duration<double>(Clock::now() - t).count();
  };
  SignalGuard signals;
  AppendFile metrics(folder_.metrics(), metrics_bytes_);
  if (options_.tensorboard) tensorboard_ = std::make_unique<TensorboardFile>(folder_, folder_.read_metrics());
  Loader loader(*task_, Split::train, batch_order(), position(step_));
  set_interventions();
  TrainingSpectra spectra(config_, folder_, *task_, *model_, interventions_);
  Progress progress(info_.name, rates_.total_steps(), step_, options_.progress);
  const int64_t stop_before = options_.max_steps > 0 ? step_ + options_.max_steps : options_.stop_before;
  const double earlier_seconds = info_.wall_seconds;
  const Clock::time_point start = Clock::now();
  Clock::time_point row_start = start;
  const auto end = [&](const char* state, const std::string& reason) {
    collect();
    info_.state = state, info_.reason = reason;
    spectra.finish();  // what a checkpoint stands for is on disk before it
    info_.wall_seconds = earlier_seconds + seconds_since(start);
    save(metrics);
  };
  try {
    bool planned = false;
    while (step_ < rates_.total_steps() && !good_enough()) {
      if (stop_signal != 0 || step_ == stop_before) {
        end("stopped", stop_signal == SIGINT ? "SIGINT" : stop_signal == SIGTERM ? "SIGTERM" : "asked to");
        return info_;
      }
      const Batch& batch = *loader.next();
      if (!planned) plan(batch, spectra.in_step()), planned = true;  // before the first step touches memory
      const bool read = spectra.due(step_ + 1);
      StepReading* reading = read ? spectra.in_step() : nullptr;
      if (reading) {
        const Clock::time_point before = Clock::now();
        spectra.wait();
        row_start += Clock::now() - before;
      }
      step(batch, reading);
      if (reading) spectra.take(step_, batch);
      const int64_t every = config_.train.checkpoint_every;
      const bool checkpoint = every > 0 && step_ % every == 0;
      if (checkpoint || step_ == stop_before || stop_signal != 0) collect();
      if (step_ % config_.train.log_every == 0 || step_ == rates_.total_steps()) {
        collect();
        log_row(metrics, seconds_since(row_start));
        row_start = Clock::now();
      }
      if (read && !reading) {
        collect();
        const Clock::time_point before = Clock::now();
        spectra.read(ctx_, step_);
        row_start += Clock::now() - before;
      }
      if (evaluation_due()) {
        collect();
        progress.update(step_, progress_text() + "  evaluating");
        evaluate_now(metrics);
        row_start = Clock::now();
      }
      progress.update(step_, progress_text());
      if (checkpoint && !good_enough()) {
        spectra.finish();
        info_.wall_seconds = earlier_seconds + seconds_since(start);
        save(metrics);
      }
    }
    end("finished", good_enough() ? fmt::format("accuracy {:.4f} > {}", evaluated_accuracy_,
                                                *config_.train.stop_criterion)
                                  : "all steps");
  } catch (const std::exception& error) {
    info_.state = "failed", info_.reason = error.what(), info_.step = step_;
    try {
      folder_.write_info(info_);
    } catch (const std::exception&) {  // the first error is the one to report
    }
    throw;
  }
  return info_;
}

}  // namespace eigentrace
