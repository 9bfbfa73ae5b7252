#include "tools/evaluate.h"

#include <algorithm>
#include <cmath>

#include "tasks/mad.h"
#include "tensor/kernels.h"

namespace eigentrace {
namespace {

constexpr size_t most_kept_bytes = size_t{256} << 20;
constexpr int64_t cuda_time_multiple = 256;

size_t bytes_of(const Batch& batch) {
  return 4 * (batch.tokens.size() + batch.values.size() + batch.lengths.size() + batch.sorted_order.size() +
              3 * batch.labels.size());
}

}  // namespace

bool masked_pooling(const Model& model, const Task& task) {
  return std::holds_alternative<SsmConfig>(model.config()) && !task.shape(Split::train).fixed_length;
}

int64_t time_multiple(const Model& model, const Task& task, Device device) {
  if (std::holds_alternative<SsmConfig>(model.config())) return task.shape(Split::train).time;
  return device.is_cuda() && !task.shape(Split::train).fixed_length ? cuda_time_multiple : 1;
}

Evaluator::Evaluator(Context& ctx, const Model& model, const Task& task, EvaluationOptions options)
    : ctx_(ctx),
      model_(model),
      task_(task),
      options_(std::move(options)),
      mad_(task.name() == MadConfig::kName),
      data_(ctx.device(), model.parameters().dtype()),
      graphs_(!options_.hook),
      sums_(Tensor::zeros({2}, DType::f64, ctx.device())) {
  options_.batch_size = std::min(options_.batch_size, task.size(options_.split));
  const int64_t batches = (task.size(options_.split) + options_.batch_size - 1) / options_.batch_size;
  results_ = Tensor::zeros({batches, 2}, DType::f64, ctx.device());
}

void Evaluator::add(const Batch& batch) {
  data_.load(batch, masked_pooling(model_, task_), LossAverage::labelled, &ctx_);
  Tensor argmax;
  const auto work = [&] {
    Tape tape(ctx_, false);
    Forward forward(tape, model_.parameters());
    if (options_.hook) options_.hook(forward, data_.input());
    const Loss loss = model_.loss(forward, data_.input(), data_.labels());
    Tensor sum = sums_.slice(0, 0, 1), correct = sums_.slice(0, 1, 1);
    kernels::copy(ctx_, loss.loss_sum, sum);
    kernels::copy(ctx_, loss.correct, correct);
    argmax = loss.argmax;
  };
  if (mad_)
    work();  // its accuracy is made on the host from the predictions
  else
    graphs_.run(ctx_, shape_key(data_.input(), data_.labels()), work);
  Tensor row = results_.slice(0, batches_, 1).reshape({2});
  kernels::copy(ctx_, sums_, row);
  labels_.push_back(static_cast<double>(batch.label_count));
  if (mad_ && batch.label_count > 0) {
    const std::vector<int32_t> predicted = argmax.to_vector<int32_t>();
    const auto labelled = static_cast<size_t>(batch.label_count);
    macro_.push_back(
        mad_accuracy(std::span(batch.labels).first(labelled), std::span(predicted).first(labelled)));
  }
  ++batches_;
}

Evaluation Evaluator::run() {
  batches_ = 0, labels_.clear(), macro_.clear();
  if (all_kept_) {
    for (const Batch& batch : kept_) add(batch);
  } else {
    LoaderOptions order;
    order.batch_size = options_.batch_size;
    order.shuffle =
        options_.examples > 0;  // data sets may be sorted by class: the first examples would not do
    order.epochs = 1;
    order.pad_last = true;
    order.time_multiple = time_multiple(model_, task_, ctx_.device());
    order.threads = ctx_.device().is_cuda() ? 4 : 1;
    Loader loader(task_, options_.split, order);
    size_t bytes = 0;
    int64_t seen = 0;
    kept_.clear();
    const Batch* batch = nullptr;
    while ((options_.examples == 0 || seen < options_.examples) && (batch = loader.next())) {
      seen += batch->examples;
      bytes += bytes_of(*batch);
      if (bytes <= most_kept_bytes) kept_.push_back(*batch);
      add(*batch);
    }
    all_kept_ = bytes <= most_kept_bytes;
    if (!all_kept_) kept_.clear();
  }
  const std::vector<double> rows = results_.to_vector<double>();
  double loss = 0, correct = 0, labels = 0, batch_loss = 0, batch_accuracy = 0;
  for (size_t i = 0; i < labels_.size(); ++i) {
    const double sum = rows[2 * i], right = rows[2 * i + 1], count = std::max(labels_[i], 1.0);
    loss += sum, correct += right, labels += labels_[i];
    batch_loss += sum / count, batch_accuracy += right / count;
  }
  const auto batches = static_cast<double>(batches_);
  Evaluation result;
  result.labels = static_cast<int64_t>(labels);
  result.loss = options_.mean_of_batches ? batch_loss / batches : loss / labels;
  result.accuracy = options_.mean_of_batches ? batch_accuracy / batches : correct / labels;
  if (mad_) {
    double macro = 0;
    for (const double value : macro_) macro += value;
    result.macro_accuracy = macro / static_cast<double>(macro_.size());
  }
  return result;
}

Evaluation evaluate(Context& ctx, const Model& model, const Task& task, Split split, int64_t batch_size,
                    bool mean_of_batches, int64_t examples, const PassHook& hook) {
  return Evaluator(ctx, model, task, {split, batch_size, mean_of_batches, examples, hook}).run();
}

}  // namespace eigentrace
