// Whole training steps of the study's configurations on a GPU, as the trainer takes them: captured, batch on
// the device. The floor of a step is the larger of its arithmetic at the measured rates of matrix products
// and its bytes at the measured rate of a copy.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "tensor/error.h"
#include "tensor/kernels.h"
#include "tensor/rng.h"
#include "tools/bench_gpu.h"
#include "tools/experiments.h"

namespace eigentrace {

std::vector<StudySize> study_sizes() {
  const TaskShape mqar{
      .time = 512, .vocabulary = 8192, .classes = 8192, .per_position = true, .labels_per_example = 64};
  const TaskShape cifar{.time = 1024, .vocabulary = 256, .classes = 10};
  const TaskShape imdb{.time = 4096, .vocabulary = 134, .classes = 2};
  return {{"mqar", mqar, {"sm-attention", "lin-attention", "norm-attention", "mamba2", "lru", "s4"}},
          {"cifar", cifar, {"sm-attention", "lin-attention", "norm-attention", "mamba2", "lru", "s4"}},
          {"imdb", imdb, {"sm-attention", "lin-attention", "norm-attention", "mamba2"}}};
}

namespace {

/// Random inputs and labels of a task's sizes: the time of a step does not depend on what they say.
Batch random_batch(const TaskShape& shape, int64_t examples) {
  Batch batch;
  batch.reset(shape, examples, shape.time, {});
  Rng rng(5);
  for (int32_t& token : batch.tokens)
    token = static_cast<int32_t>(rng.below(static_cast<uint32_t>(shape.vocabulary)));
  for (float& value : batch.values) value = static_cast<float>(rng.normal());
  const auto label = [&] { return static_cast<int32_t>(rng.below(static_cast<uint32_t>(shape.classes))); };
  for (int64_t b = 0; b < examples; ++b)
    if (shape.per_position)
      for (int64_t i = 0; i < shape.labels_per_example; ++i)
        batch.label(b, shape.time - shape.labels_per_example + i, label());
    else
      batch.label_sequence(b, label());
  sort_tokens(batch, std::max<int64_t>(shape.vocabulary, 1));
  return batch;
}

/// Sizes of a layer: numbers of weights in its products per position, widths of their outputs,
/// multiplications of its mixer per position; and what of the first two lies behind the mixer.
struct LayerCost {
  double weights = 0, width = 0, mixer = 0, weights_behind = 0, width_behind = 0;
};

LayerCost cost_of(const ModelConfig& model, double time) {
  constexpr double chunk = 64;
  if (const auto* t = std::get_if<TransformerConfig>(&model)) {
    const auto D = static_cast<double>(t->hidden_dim), S = static_cast<double>(t->state_dim),
               H = static_cast<double>(t->num_heads), n = S / H, p = D / H;
    const double projection = D + 2 * S + (t->attention_fn == AttentionKind::norm ? H : 0);
    LayerCost c{D * projection + D * D, projection + 2 * D, 0};
    if (t->mixer == MixerKind::mlp)
      c.weights += 2 * D * static_cast<double>(t->mixer_dim),
          c.width += D + static_cast<double>(t->mixer_dim);
    if (t->mixer == MixerKind::glu) c.weights += 2 * D * D, c.width += 3 * D;
    c.weights_behind = c.weights - D * projection, c.width_behind = c.width - projection;
    c.mixer = t->attention_fn == AttentionKind::softmax ? H * time / 2 * (n + p)
                                                        : H * (2 * n * p + chunk / 2 * (n + p));
    return c;
  }
  if (const auto* m = std::get_if<MambaConfig>(&model)) {
    const auto D = static_cast<double>(m->hidden_dim), S = static_cast<double>(m->state_dim);
    const double E = static_cast<double>(m->expansion) * D,
                 H = static_cast<double>(m->expansion * m->num_heads), p = E / H;
    LayerCost c{D * (E + 2 * S + H) + E * D, E + 2 * S + H + D,
                H * (2 * S * p + chunk / 2 * p) + chunk / 2 * S};
    if (m->glu) c.weights += 2 * D * D, c.width += 3 * D;
    c.weights_behind = c.weights - D * (E + 2 * S + H), c.width_behind = c.width - (E + 2 * S + H);
    return c;
  }
  const auto& s = std::get<SsmConfig>(model);
  const auto D = static_cast<double>(s.hidden_dim), N = static_cast<double>(s.state_dim);
  LayerCost c{2 * D * D, 6 * D, 0};
  if (s.layer == SsmKind::s4)
    c.mixer = D * 7.5 * std::log2(2 * time) / 2;  // three transforms of 2T points; the kernel apart
  else
    c.weights += 4 * N * D, c.width += 4 * N;
  return c;
}

/// Arithmetic (products, the mixer's own) and bytes that a training step cannot do without: three times the
/// forward products; every product's output touched six times over forward and backward, in the type of
/// activations; 32 bytes a parameter for AdamW; the head's logits, float32, at labelled positions only, six
/// times.
struct StepFloor {
  double products = 0, mixer = 0, bytes = 0;
};

StepFloor floor_of(const Model& model, const TaskShape& shape, int64_t examples, Precision precision) {
  const double activation = precision == Precision::bf16 ? 2 : 4;
  const double n = static_cast<double>(examples * shape.time);
  const LayerCost layer = cost_of(model.config(), static_cast<double>(shape.time));
  const auto layers = static_cast<double>(model.mixers().size());
  const double labels = static_cast<double>(examples * (shape.per_position ? shape.labels_per_example : 1));
  const double D =
      std::visit([](const auto& c) { return static_cast<double>(c.hidden_dim); }, model.config());
  StepFloor f;
  // Behind the last mixer only labelled positions count.
  const double left_out = model.leaves_rows_out() && shape.per_position ? n - labels : 0;
  f.products = 6 * (n * layers * layer.weights - left_out * layer.weights_behind +
                    labels * D * static_cast<double>(shape.classes));
  f.mixer = 6 * n * layers * layer.mixer;
  f.bytes = 6 * activation * (n * layers * layer.width - left_out * layer.width_behind) +
            32 * static_cast<double>(model.parameters().count());
  if (shape.per_position) f.bytes += 24 * labels * static_cast<double>(shape.classes);
  return f;
}

BenchLine time_step(const std::string& experiment, const TaskShape& task, const GpuBench& how,
                    Precision precision) {
  StudyStep s(experiment, task, how, precision);
  const auto work = [&] { s.step.run(s.data.input(), s.data.labels()); };
  for (int i = 0; i < (how.eager ? 2 : 4); ++i) work();
  BenchLine line;
  if (how.eager && how.quick) {
    synchronise(how.device);
    return line;  // for a profiler
  }
  line.seconds = steady_seconds(how.device, how.quick ? 3 : 20, work);
  const std::vector<StepResult> results = s.step.results();
  if (results.back().failed) line.note = "NOT FINITE";
  const StepFloor floor = floor_of(*s.model, s.shape, s.batch.batch, precision);
  const Precision mixer = experiment.ends_with("sm-attention") && how.attention ? *how.attention : precision;
  line.floor = std::max(
      floor.products / gemm_rate(how.ceilings, precision) + floor.mixer / gemm_rate(how.ceilings, mixer),
      floor.bytes / how.ceilings.copy);
  line.flops = floor.products + floor.mixer, line.bytes = floor.bytes;
  line.peak_mib = static_cast<double>(s.ctx.slab().peak()) / 1048576.0;
  line.tokens = static_cast<double>(s.batch.batch * s.shape.time);
  line.note += fmt::format("{}{} kernels", line.note.empty() ? "" : ", ", s.step.graph_nodes());
  return line;
}

}  // namespace

namespace {

/// The configuration's model reads floats: the task's shape then has one feature in place of symbols.
TaskShape shape_for(const ModelConfig& model, TaskShape shape) {
  const bool floats = std::visit(
      [](const auto& c) {
        if constexpr (requires { c.embedding; })
          return !c.embedding;
        else if constexpr (requires { c.token_embedding; })
          return !c.token_embedding;
        else if constexpr (requires { c.input_dim; })
          return c.input_dim == 1;
        else
          return false;
      },
      model);
  if (floats) shape.features = 1, shape.vocabulary = 0;
  return shape;
}

RunConfig fitted(RunConfig config, const TaskShape& shape) {
  fit_model(config.model, shape_for(config.model, shape));
  return config;
}

}  // namespace

StudyStep::StudyStep(const std::string& experiment, const TaskShape& task, const GpuBench& how,
                     Precision precision)
    : config(fitted(read_config_file(experiment_path(experiment)).config, task)),
      shape(shape_for(config.model, task)),
      model(make_model(config.model, config.seed, DType::f32, how.device)),
      optimiser(model->parameters(),
                make_groups(model->parameters(), config.model, config.train, config.dialect),
                OptimiserOptions{1.0, false}),
      rates(config.train, 45000),
      ctx(how.device),
      batch(random_batch(shape, config.train.batch_size)),
      data(how.device, DType::f32),
      step(ctx, *model, optimiser, rates, config.seed, !how.eager) {
  ctx.precision = precision;
  if (how.attention) ctx.attention_precision = *how.attention;
  data.load(batch, false, LossAverage::labelled);
}

double gemm_rate(const Ceilings& c, Precision p) {
  switch (p) {
    case Precision::fp32:
      return c.gemm_f32;
    case Precision::tf32:
      return c.gemm_tf32;
    case Precision::tf32x3:
      return c.gemm_tf32 / 3;
    case Precision::bf16:
      return c.gemm_bf16;
  }
  return c.gemm_f32;
}

double steady_seconds(Device device, int calls, const std::function<void()>& work) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> rounds;
  for (int round = 0; round < 5; ++round) {
    synchronise(device);
    const Clock::time_point start = Clock::now();
    for (int i = 0; i < calls; ++i) work();
    synchronise(device);
    rounds.push_back(std::chrono::duration<double>(Clock::now() - start).count() / calls);
  }
  std::ranges::sort(rounds);
  return rounds[2];
}

Ceilings measure_gpu_ceilings(Device device) {
  Ceilings ceilings;
  Context ctx(device);
  const int64_t n = 8192;
  Rng rng(3);
  std::vector<float> values(static_cast<size_t>(n * n));
  for (float& v : values) v = static_cast<float>(rng.uniform(-1, 1));
  const Tensor a = Tensor::from(values, {n, n}, device), b = Tensor::from(values, {n, n}, device);
  Tensor c = Tensor::zeros({n, n}, DType::f32, device);
  const double operations = 2.0 * std::pow(static_cast<double>(n), 3);
  for (const Precision p : {Precision::fp32, Precision::tf32, Precision::bf16}) {
    ctx.precision = p;
    kernels::matmul(ctx, a, b, c);
    const double rate = operations / steady_seconds(device, p == Precision::fp32 ? 2 : 5,
                                                    [&] { kernels::matmul(ctx, a, b, c); });
    (p == Precision::fp32   ? ceilings.gemm_f32
     : p == Precision::tf32 ? ceilings.gemm_tf32
                            : ceilings.gemm_bf16) = rate;
  }
  const int64_t elements = int64_t{1} << 29;  // 2 GiB: far larger than the cache
  const Tensor from = Tensor::zeros({elements}, DType::f32, device);
  Tensor to = Tensor::zeros({elements}, DType::f32, device);
  ceilings.copy =
      8.0 * static_cast<double>(elements) / steady_seconds(device, 5, [&] { kernels::copy(ctx, from, to); });
  return ceilings;
}

std::vector<BenchCase> gpu_step_benchmarks(const GpuBench& how) {
  std::vector<BenchCase> cases;
  for (const StudySize& size : study_sizes())
    for (const char* family : size.families)
      for (const Precision precision : how.precisions) {
        const std::string experiment = fmt::format("{}-{}", size.task, family);
        std::string name = fmt::format("step: {}, {}", experiment, name_of(precision));
        if (how.attention && experiment.ends_with("sm-attention"))
          name += fmt::format(", attention in {}", name_of(*how.attention));
        cases.push_back(
            {name, [=, shape = size.shape] { return time_step(experiment, shape, how, precision); }});
      }
  return cases;
}

}  // namespace eigentrace
