#include "nn/train_step.h"

#include <fmt/format.h>

#include <algorithm>

#include "tensor/error.h"
#include "tensor/kernels.h"

namespace eigentrace {
namespace {

constexpr int64_t table_rows = 1000;  // steps whose rates the device knows in advance

}  // namespace

std::vector<int64_t> shape_key(const ModelInput& input, const Labels& labels) {
  std::vector<int64_t> key;
  for (const Tensor* t :
       {&input.tokens.ids, &input.values, &input.lengths, &input.valid_time, &labels.rows}) {
    key.push_back(t->defined() ? reinterpret_cast<int64_t>(t->raw()) : 0);
    for (int axis = 0; t->defined() && axis < t->rank(); ++axis) key.push_back(t->dim(axis));
  }
  return key;
}

TrainStep::TrainStep(Context& ctx, Model& model, Optimiser& optimiser, const LearningRates& rates,
                     uint64_t seed, bool capture)
    : ctx_(ctx),
      model_(model),
      optimiser_(optimiser),
      rates_(rates),
      seed_(seed),
      table_(Tensor::zeros({table_rows, static_cast<int64_t>(optimiser.groups().size()), 4}, DType::f64,
                           ctx.device())),
      first_(Tensor::zeros({1}, DType::i64, ctx.device())),
      ring_(Tensor::zeros({most_pending + 1, 4}, DType::f64, ctx.device())),
      graphs_(capture),
      with_reading_(capture) {
  start(0);
}

void TrainStep::start(int64_t step) {
  step_ = read_ = step;
  ctx_.set_step(seed_, static_cast<uint64_t>(step));
  ring_.assign(std::vector<double>(static_cast<size_t>(ring_.numel()), 0.0));
  fill_table();
}

void TrainStep::fill_table() {
  const std::vector<ParameterGroup>& groups = optimiser_.groups();
  std::vector<double> rows;
  const int64_t done = optimiser_.steps();  // equal to step_ but for runs that began from other weights
  for (int64_t i = 0; i < table_rows; ++i) {
    const std::vector<double> row = optimiser_.row(done + 1 + i, rates_.at(groups, step_ + i));
    rows.insert(rows.end(), row.begin(), row.end());
  }
  table_first_ = step_;
  first_.assign(std::vector<int64_t>{step_});
  table_.assign(rows);
  rows.resize(groups.size() * 4);
  const bool failed =
      step_ > read_ && ring_.slice(0, (step_ - 1) % ring_.dim(0), 1).to_vector<double>()[3] != 0;
  if (failed) std::ranges::fill(rows, 0.0);  // nothing moves until the host has looked
  optimiser_.device_rates().assign(rows);
}

void TrainStep::rates_changed() { fill_table(); }

Loss TrainStep::forward_backward(Context& ctx, const ModelInput& input, const Labels& labels,
                                 bool check_finite, StepReading* reading) {
  Tape tape(ctx);
  tape.check_finite = check_finite;
  Forward forward(tape, model_.parameters());
  forward.dropout = true;
  forward.batch_statistics = true;
  if (hook_) hook_(forward, input);
  if (reading) reading->attach(forward);
  Loss loss = model_.loss(forward, input, labels);
  tape.backward(loss.value);
  return loss;
}

StepPlan TrainStep::plan(const ModelInput& input, const Labels& labels, StepReading* reading) {
  if (reading) reading->choose(shape_key(input, labels));
  Context dry = Context::dry_run(ctx_.device());
  dry.precision = ctx_.precision, dry.attention_precision = ctx_.attention_precision;
  forward_backward(dry, input, labels, false, reading);
  if (reading) reading->allocate();
  return {dry.slab().peak(), dry.slab().peak_label(), reading ? reading->bytes() : 0};
}

void TrainStep::enqueue(const ModelInput& input, const Labels& labels, StepReading* reading) {
  const Loss loss = forward_backward(ctx_, input, labels, false, reading);
  optimiser_.update(ctx_);
  kernels::end_step(ctx_, {loss.loss_sum, loss.correct, optimiser_.device_norm(), table_, first_,
                           optimiser_.device_rates(), ring_});
}

void TrainStep::run(const ModelInput& input, const Labels& labels, StepReading* reading) {
  if (pending() >= most_pending)
    fail(fmt::format("TrainStep::run: {} steps since the last look at the results; call results()",
                     pending()));
  if (step_ - table_first_ >= table_rows) fill_table();
  std::vector<int64_t> key = shape_key(input, labels);
  if (reading) {
    if (!reading->choose(key)) plan(input, labels, reading);
    key.push_back(reading->address());
    reading->before(ctx_);
  }
  GraphCache& graphs = hook_ ? eager_ : reading ? with_reading_ : graphs_;
  graphs.run(ctx_, key, [&] { enqueue(input, labels, reading); });
  last_ = &graphs;
  if (reading) reading->after(ctx_);
  ++step_;
  optimiser_.set_steps(optimiser_.steps() + 1);
}

std::vector<StepResult> TrainStep::results() {
  std::vector<StepResult> results;
  const std::vector<double> ring = ring_.to_vector<double>();
  for (; read_ < step_; ++read_) {
    const double* row = ring.data() + read_ % ring_.dim(0) * 4;
    results.push_back({read_, row[0], row[1], row[2], row[3] != 0});
  }
  return results;
}

}  // namespace eigentrace
