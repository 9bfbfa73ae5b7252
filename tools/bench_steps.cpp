// Whole training steps of the study's configurations: forward, loss, backward, clipping, optimiser. The floor
// is the time the step's own matrix products would take at the ceiling measured in the same run.
#include "nn/model.h"
#include "nn/optimiser.h"
#include "nn/schedule.h"
#include "tasks/config.h"
#include "tensor/blas.h"
#include "tensor/error.h"
#include "tools/bench.h"
#include "tools/device_batch.h"
#include "tools/experiments.h"

namespace eigentrace {
namespace {

BenchLine time_step(const std::string& experiment, int64_t batch_size, int64_t time, bool quick) {
  std::vector<std::string> overrides;
  if (time > 0) {  // the task wants more symbols than positions
    overrides = {"dataset.input_seq_length=" + std::to_string(time)};
    const bool table = experiment != "mqar-s4" && experiment != "mqar-lru";
    for (const char* key :
         {"dataset.vocab_size", table ? "model.vocab_size" : "model.input_dim", "model.output_dim"})
      overrides.push_back(std::string(key) + "=16384");
  }
  RunConfig config = read_config_file(experiment_path(experiment), overrides).config;
  const std::unique_ptr<Task> task = make_task(config.dataset);
  if (auto* transformer = std::get_if<TransformerConfig>(&config.model);
      transformer && transformer->max_pos_embed > 0)
    transformer->max_pos_embed = std::max(transformer->max_pos_embed, task->shape(Split::train).time);
  fit_model(config.model, task->shape(Split::train));
  const std::unique_ptr<Model> model = make_model(config.model, config.seed, DType::f32);
  Optimiser optimiser(model->parameters(),
                      make_groups(model->parameters(), config.model, config.train, config.dialect),
                      optimiser_options(config.train));
  const LearningRates rates(config.train, task->size(Split::train));
  std::vector<int64_t> indices;
  const int64_t examples = batch_size > 0 ? batch_size : config.train.batch_size;
  for (int64_t i = 0; i < examples; ++i) indices.push_back(i);
  Batch batch;
  task->make(Split::train, indices, batch);
  sort_tokens(batch, task->shape(Split::train).vocabulary);
  DeviceBatch data({}, DType::f32);
  data.load(batch, false, LossAverage::labelled);
  Context ctx;
  int64_t step = 0;
  const auto work = [&] {
    ctx.set_step(config.seed, static_cast<uint64_t>(step));
    Tape tape(ctx);
    Forward forward(tape, model->parameters());
    forward.dropout = forward.batch_statistics = true;
    const Loss loss = model->loss(forward, data.input(), data.labels());
    tape.backward(loss.value);
    optimiser.step(ctx, rates.at(optimiser.groups(), step++));
  };
  const int64_t before = gemm_operations();
  work();
  BenchLine line;
  line.flops = static_cast<double>(gemm_operations() - before);
  line.seconds = best_seconds(quick ? 1 : 3, work);
  line.peak_mib = static_cast<double>(ctx.slab().peak()) / 1048576.0;
  return line;
}

}  // namespace

std::vector<BenchCase> step_benchmarks(bool quick) {
  std::vector<BenchCase> cases;
  const auto add = [&](const std::string& name, const std::string& experiment, int64_t batch, int64_t time) {
    cases.push_back({name, [=] { return time_step(experiment, batch, time, quick); }});
  };
  const std::vector<std::string> models = {"sm-attention", "lin-attention", "norm-attention",
                                           "mamba2",       "lru",           "s4"};
  for (const std::string& model : models) {
    const std::string experiment = "mqar-" + model;
    add("step: " + experiment + ", published (64 x 512)", experiment, quick ? 8 : 0, 0);
  }
  // Time and memory against T at a constant number of tokens: flat lines are linear growth.
  for (const std::string& model : models)
    for (int64_t time = 512; time <= (quick ? 1024 : 8192); time *= 2) {
      const std::string experiment = "mqar-" + model;
      add("step: " + experiment + ", vocabulary 16384, " + std::to_string(8192 / time) + " x " +
              std::to_string(time),
          experiment, 8192 / time, time);
    }
  return cases;
}

}  // namespace eigentrace
