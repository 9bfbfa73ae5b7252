// Training steps as the trainer takes them, against the same steps put together by hand; on a GPU captured
// against eager.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "nn/config/config.h"
#include "nn/train_step.h"
#include "spectral/reading.h"
#include "tasks/config.h"
#include "tasks/loader.h"
#include "tests/cuda_testing.h"
#include "tools/device_batch.h"

using namespace eigentrace;

namespace {

struct ModelCase {
  const char *name, *model;
};

// Widths that are no multiples of four are on purpose: rows then start at odd addresses.
const std::vector<ModelCase> families = {
    {"softmax",
     "layer: transformer, attention_fn: sm-attention, num_layers: 2, hidden_dim: 12, state_dim: 8, "
     "num_heads: 2, "
     "mixer: mlp, mixer_dim: 9, dropout: 0.1, att_dropout: 0.1, embedding: true, vocab_size: 40, "
     "max_pos_embed: 32, "
     "output_dim: 40"},
    {"linear",
     "layer: transformer, attention_fn: lin-attention, num_layers: 1, hidden_dim: 12, state_dim: 8, "
     "num_heads: 2, "
     "mixer: glu, dropout: 0.1, att_dropout: 0.2, embedding: true, vocab_size: 40, output_dim: "
     "40"},
    {"norm",
     "layer: transformer, attention_fn: norm-attention, norm_fn: softplus, approx_fn: elu, offset: true, "
     "dim_conv: 4, "
     "num_layers: 2, hidden_dim: 12, state_dim: 12, num_heads: 1, mixer: none, dropout: 0.1, embedding: "
     "true, "
     "vocab_size: 40, output_dim: 40"},
    {"mamba2",
     "layer: mamba, version: mamba2, num_layers: 2, hidden_dim: 12, state_dim: 8, num_heads: 2, conv_dim: 4, "
     "expansion: 1, glu: true, prenorm: true, dropout: 0.1, norm: layer, token_embedding: true, vocab_size: "
     "40, "
     "pooling: none, output_dim: 40"},
    {"mamba1",
     "layer: mamba, version: mamba1, num_layers: 1, hidden_dim: 12, state_dim: 8, conv_dim: 4, expansion: 1, "
     "glu: true, prenorm: true, dropout: 0.1, norm: layer, token_embedding: true, vocab_size: 40, pooling: "
     "none, "
     "output_dim: 40"},
    {"lru",
     "layer: lru, num_layers: 2, hidden_dim: 12, state_dim: 10, activation: full_glu, dropout: 0.1, norm: "
     "batch, "
     "prenorm: false, r_min: 0.9, r_max: 0.99, pooling: none, input_dim: 40, output_dim: 40"},
    {"s5",
     "layer: s5, num_layers: 1, hidden_dim: 12, state_dim: 16, num_blocks: 2, activation: full_glu, dropout: "
     "0.1, norm: "
     "batch, "
     "prenorm: false, pooling: none, input_dim: 40, output_dim: 40"},
    {"s4",
     "layer: s4, num_layers: 2, hidden_dim: 12, state_dim: 10, activation: full_glu, dropout: 0.1, norm: "
     "batch, "
     "prenorm: false, pooling: none, input_dim: 40, output_dim: 40"},
};

RunConfig config_of(const ModelCase& family) {
  return read_config(
             fmt::format("format: eigentrace/1\nseed: 7\n"
                         "dataset: {{_name_: mqar, vocab_size: 40, input_seq_length: 32, num_kv_pairs: 3, "
                         "num_train_examples: 50, num_test_examples: 9}}\n"
                         "train: {{total_steps: 40, batch_size: 7, lr: 3e-3, wd: 0.1, warmup_steps: 2}}\n"
                         "model: {{{}}}\n",
                         family.model),
             "test", {})
      .config;
}

enum class How { by_hand, eager, captured };

struct Outcome {
  std::vector<double> values, norms, losses;
  std::vector<std::vector<double>> spectra;  // log|λ| and arg λ of each layer of each step that was read
  size_t nodes = 0, reading_nodes = 0;
};

constexpr int64_t sequences_read = 3;

/// The first sequences of a spectrum of the whole batch, or what does not depend on them.
std::vector<double> first_sequences(const LayerSpectrum& spectrum) {
  std::vector<double> values = spectrum.log_abs;
  if (spectrum.time_dependent() && spectrum.shape[0] > sequences_read)
    values.resize(values.size() / size_t(spectrum.shape[0]) * size_t(sequences_read));
  values.insert(values.end(), spectrum.arg.begin(), spectrum.arg.end());
  return values;
}

/// read_every: a reading in steps read_every − 1, 2 · read_every − 1, …; by hand: the realisations are read
/// inside the pass. 0: none.
Outcome train(const ModelCase& family, Device device, How how, int64_t steps, int64_t read_every = 0,
              Precision precision = Precision::fp32) {
  RunConfig config = config_of(family);
  const std::unique_ptr<Task> task = make_task(config.dataset);
  fit_model(config.model, task->shape(Split::train));
  const std::unique_ptr<Model> model = make_model(config.model, config.seed, DType::f32, device);
  Optimiser optimiser(model->parameters(),
                      make_groups(model->parameters(), config.model, config.train, config.dialect),
                      optimiser_options(config.train));
  const LearningRates rates(config.train, task->size(Split::train));
  Context ctx(device, device.is_cuda() ? size_t{256} << 20 : 0);
  ctx.poison = true;
  ctx.precision = precision;
  LoaderOptions order;
  order.batch_size =
      config.train.batch_size;  // 50 examples: every eighth batch is a ragged one of one example
  Loader loader(*task, Split::train, order);
  DeviceBatch data(device, DType::f32);
  TrainStep step(ctx, *model, optimiser, rates, config.seed, how == How::captured);
  Outcome outcome;
  StepReading reading(device, sequences_read);
  for (int64_t s = 0; s < steps; ++s) {
    const bool read = read_every > 0 && s % read_every == read_every - 1;
    step.set_hook({});
    if (read && how == How::by_hand)
      step.set_hook([&](Forward& forward, const ModelInput&) {
        forward.on_mixer = [&](int layer, const Mixer& mixer, const Terms& terms, const Mixed& mixed) {
          outcome.spectra.push_back(first_sequences(read_spectrum(mixer.realise(terms, mixed), layer)));
          return Var();
        };
      });
    data.load(*loader.next(), false, LossAverage::labelled, &ctx);
    if (how == How::by_hand) {
      ctx.set_step(config.seed, static_cast<uint64_t>(s));
      outcome.losses.push_back(
          step.forward_backward(ctx, data.input(), data.labels(), true).loss_sum.to_vector<double>()[0]);
      optimiser.step(ctx, rates.at(optimiser.groups(), s));
      outcome.norms.push_back(optimiser.norm());
    } else {
      step.run(data.input(), data.labels(), read ? &reading : nullptr);
      (read ? outcome.reading_nodes : outcome.nodes) =
          std::max(read ? outcome.reading_nodes : outcome.nodes, step.graph_nodes());
      if (!read) continue;
      for (const StepReading::Layer& layer : reading.wait())
        outcome.spectra.push_back(
            first_sequences(read_spectrum(layer.mixer->lambda(layer.sources), layer.layer)));
    }
  }
  for (const StepResult& result : step.results()) {
    if (how == How::by_hand) break;
    CHECK(!result.failed);
    outcome.losses.push_back(result.loss_sum), outcome.norms.push_back(result.norm);
  }
  for (const Parameter& p : model->parameters().parameters()) {
    const std::vector<double> values = p.value.to_vector<double>();
    outcome.values.insert(outcome.values.end(), values.begin(), values.end());
  }
  return outcome;
}

void check_same(const Outcome& a, const Outcome& b) {
  CHECK(a.values == b.values);
  CHECK(a.losses == b.losses);
  CHECK(a.norms == b.norms);
}

}  // namespace

TEST_CASE("train step: the same bits as forward, backward and optimiser called one by one") {
  for (const ModelCase& family : families) {
    CAPTURE(family.name);
    check_same(train(family, {}, How::eager, 10), train(family, {}, How::by_hand, 10));
  }
}

TEST_CASE("train step: on a GPU, captured steps have the bits of eager ones, and two runs have the same") {
  if (cuda_device_count() == 0) {
    MESSAGE("no GPU here: this case needs one");
    return;
  }
  const Device gpu = parse_device("cuda");
  for (const ModelCase& family : families) {
    SUBCASE(family.name) {
      const int64_t steps = testing::under_sanitizer() ? 9 : 12;  // the eighth batch is a ragged one
      const Outcome eager = train(family, gpu, How::eager, steps),
                    captured = train(family, gpu, How::captured, steps);
      CHECK(eager.nodes == 0);
      CHECK(captured.nodes > 10);
      check_same(captured, eager);
      if (testing::under_sanitizer()) continue;
      check_same(train(family, gpu, How::captured, 12), captured);
      if (&family == &families[1]) check_same(train(family, gpu, How::by_hand, 12), eager);
      const Outcome cpu = train(family, {}, How::eager, 12);
      for (size_t s = 0; s < cpu.losses.size(); ++s)
        CHECK(captured.losses[s] == doctest::Approx(cpu.losses[s]).epsilon(2e-3));
    }
  }
}

TEST_CASE("train step: a reading is of what the step itself computed and leaves its bits as they are") {
  for (const ModelCase& family : families) {
    CAPTURE(family.name);
    const Outcome by_hand = train(family, {}, How::by_hand, 10, 2),
                  read = train(family, {}, How::eager, 10, 2);
    CHECK(read.spectra == by_hand.spectra);
    CHECK(read.spectra.size() >= 5);
    CHECK(read.spectra.front() != read.spectra.back());
    check_same(read, train(family, {}, How::eager, 10));
  }
}

TEST_CASE("train step: of a reading the steps that only fill up a bucket can be left out") {
  RunConfig config = config_of(families[2]);
  const std::unique_ptr<Task> task = make_task(config.dataset);
  fit_model(config.model, task->shape(Split::train));
  const std::unique_ptr<Model> model = make_model(config.model, config.seed, DType::f32);
  Optimiser optimiser(model->parameters(),
                      make_groups(model->parameters(), config.model, config.train, config.dialect),
                      optimiser_options(config.train));
  const LearningRates rates(config.train, task->size(Split::train));
  Context ctx;
  Loader loader(*task, Split::train, {.batch_size = 7});
  DeviceBatch data({}, DType::f32);
  data.load(*loader.next(), false, LossAverage::labelled);
  TrainStep step(ctx, *model, optimiser, rates, config.seed);
  StepReading reading({}, sequences_read);
  const StepPlan plan = step.plan(data.input(), data.labels(), &reading);
  CHECK(plan.peak == step.plan(data.input(), data.labels()).peak);
  CHECK(plan.reading == reading.bytes());
  CHECK(plan.reading >= 2 * sequences_read * 32 * sizeof(float));
  step.run(data.input(), data.labels(), &reading);
  const auto whole = reading.wait(), part = reading.wait(5);
  REQUIRE(whole.size() == 2);
  for (size_t l = 0; l < whole.size(); ++l) {
    const LayerSpectrum all = read_spectrum(whole[l].mixer->lambda(whole[l].sources), 0),
                        few = read_spectrum(part[l].mixer->lambda(part[l].sources), 0);
    CHECK(all.shape == std::vector<int64_t>{sequences_read, 31, 1});
    REQUIRE(few.shape == std::vector<int64_t>{sequences_read, 4, 1});
    for (size_t b = 0; b < size_t(sequences_read); ++b)
      for (size_t i = 0; i < 4; ++i) CHECK(few.log_abs[b * 4 + i] == all.log_abs[b * 31 + i]);
  }
}

TEST_CASE("train step: on a GPU, a step with a reading is a captured one with copies, to the same bits") {
  if (cuda_device_count() == 0) {
    MESSAGE("no GPU here: this case needs one");
    return;
  }
  const Device gpu = parse_device("cuda");
  for (const ModelCase& family : families) {
    SUBCASE(family.name) {
      const Outcome read = train(family, gpu, How::captured, 12, 2);
      if (!testing::under_sanitizer()) check_same(read, train(family, gpu, How::captured, 12));
      CHECK(read.spectra == train(family, gpu, How::by_hand, 12, 2).spectra);
      CHECK(read.reading_nodes > read.nodes);
      CHECK(read.reading_nodes <= read.nodes + 8);
    }
  }
}

namespace {

using Width = std::pair<std::string, std::string>;
/// Rows of whole 16-byte pieces, which products take as they are.
const std::vector<Width> whole_pieces = {{"hidden_dim: 12", "hidden_dim: 16"},
                                         {"mixer_dim: 9", "mixer_dim: 24"},
                                         {"state_dim: 10", "state_dim: 8"}};
/// Heads that kernels need not fill up with zeros, and layers enough that most memory is what they keep.
const std::vector<Width> wide_heads = {
    {"num_layers: 1,", "num_layers: 6,"},    {"num_layers: 2,", "num_layers: 6,"},
    {"hidden_dim: 12,", "hidden_dim: 128,"}, {"mixer_dim: 9,", "mixer_dim: 128,"},
    {"state_dim: 8,", "state_dim: 128,"},    {"state_dim: 10,", "state_dim: 64,"},
    {"state_dim: 12,", "state_dim: 128,"}};

ModelCase widened(const ModelCase& family, const std::vector<Width>& widths, std::string& text) {
  text = family.model;
  for (const auto& [from, to] : widths)
    if (const size_t at = text.find(from); at != std::string::npos) text.replace(at, from.size(), to);
  return {family.name, text.c_str()};
}

struct Pass {
  std::vector<std::vector<double>> gradients;
  size_t peak = 0;
};

/// One forward and backward pass of 2 sequences of 32 tokens; in a dry run, of 64, for what it needs.
Pass pass_of(const ModelCase& family, Device device, Precision precision, bool dry) {
  RunConfig config = config_of(family);
  const std::unique_ptr<Task> task = make_task(config.dataset);
  fit_model(config.model, task->shape(Split::train));
  const std::unique_ptr<Model> model = make_model(config.model, config.seed, DType::f32, device);
  Optimiser optimiser(model->parameters(),
                      make_groups(model->parameters(), config.model, config.train, config.dialect),
                      optimiser_options(config.train));
  const LearningRates rates(config.train, task->size(Split::train));
  Context real(device, device.is_cuda() ? size_t{256} << 20 : 0), none = Context::dry_run(device);
  Context& ctx = dry ? none : real;
  ctx.precision = precision, ctx.poison = !dry;
  Loader loader(*task, Split::train, {.batch_size = dry ? 64 : 2});
  DeviceBatch data(device, DType::f32);
  data.load(*loader.next(), false, LossAverage::labelled, &real);
  TrainStep step(ctx, *model, optimiser, rates, config.seed, false);
  step.forward_backward(ctx, data.input(), data.labels(), !dry);
  Pass pass;
  pass.peak = ctx.slab().peak();
  if (!dry)
    for (const Parameter& p : model->parameters().parameters())
      pass.gradients.push_back(p.gradient.to_vector<double>());
  return pass;
}

}  // namespace

TEST_CASE("train step: bf16 activations give float32's gradients to bf16's accuracy") {
  if (cuda_device_count() == 0) {
    MESSAGE("no GPU here: this case needs one");
    return;
  }
  const Device gpu = parse_device("cuda");
  for (const ModelCase& narrow : families) {
    CAPTURE(narrow.name);
    std::string text;
    const ModelCase wide = widened(narrow, whole_pieces, text);
    // widths that are no whole pieces take other ways through products: one family is enough for those
    for (const ModelCase& family :
         narrow.name == families[0].name ? std::vector{narrow, wide} : std::vector{wide}) {
      CAPTURE(family.model);
      const Pass exact = pass_of(family, gpu, Precision::fp32, false),
                 rounded = pass_of(family, gpu, Precision::bf16, false);
      double difference = 0, size = 0;  // over all parameters: ‖g₁₆ − g₃₂‖ against ‖g₃₂‖
      for (size_t p = 0; p < exact.gradients.size(); ++p)
        for (size_t i = 0; i < exact.gradients[p].size(); ++i) {
          const double d = rounded.gradients[p][i] - exact.gradients[p][i];
          difference += d * d, size += exact.gradients[p][i] * exact.gradients[p][i];
        }
      CHECK(std::sqrt(difference / size) < 0.03);
      CHECK(difference > 0);
    }
  }
}

TEST_CASE("train step: bf16 activations take less memory") {
  if (cuda_device_count() == 0) {
    MESSAGE("no GPU here: this case needs one");
    return;
  }
  for (const ModelCase& narrow : families) {
    CAPTURE(std::string(narrow.name));
    std::string text;
    const ModelCase family = widened(narrow, wide_heads, text);
    const auto peak = [&](Precision precision) {
      return static_cast<double>(pass_of(family, parse_device("cuda"), precision, true).peak);
    };
    CHECK(peak(Precision::bf16) < 0.9 * peak(Precision::fp32));
  }
}

TEST_CASE("train step: bf16: captured steps have the bits of eager ones, two runs the same, losses near") {
  if (cuda_device_count() == 0) {
    MESSAGE("no GPU here: this case needs one");
    return;
  }
  const Device gpu = parse_device("cuda");
  for (const ModelCase& narrow : families) {
    CAPTURE(narrow.name);
    std::string text;
    const ModelCase family = widened(narrow, whole_pieces, text);
    const Outcome eager = train(family, gpu, How::eager, 4, 0, Precision::bf16),
                  captured = train(family, gpu, How::captured, 4, 0, Precision::bf16);
    check_same(captured, eager);
    check_same(train(family, gpu, How::captured, 4, 0, Precision::bf16), captured);
    const Outcome cpu = train(family, {}, How::eager, 4);
    for (size_t s = 0; s < cpu.losses.size(); ++s)
      CHECK(captured.losses[s] == doctest::Approx(cpu.losses[s]).epsilon(2e-2));
  }
}

TEST_CASE("train step: after a step that is not finite nothing moves, and the results say from where on") {
  std::vector<Device> devices = {Device{}};
  if (cuda_device_count() > 0) devices.push_back(parse_device("cuda"));
  for (const Device device : devices) {
    RunConfig config = config_of(families[1]);
    const std::unique_ptr<Task> task = make_task(config.dataset);
    fit_model(config.model, task->shape(Split::train));
    const std::unique_ptr<Model> model = make_model(config.model, config.seed, DType::f32, device);
    Optimiser optimiser(model->parameters(),
                        make_groups(model->parameters(), config.model, config.train, config.dialect),
                        optimiser_options(config.train));
    const LearningRates rates(config.train, task->size(Split::train));
    Context ctx(device, device.is_cuda() ? size_t{256} << 20 : 0);
    Loader loader(*task, Split::train, {.batch_size = 7});
    DeviceBatch data(device, DType::f32);
    TrainStep step(ctx, *model, optimiser, rates, config.seed);
    Parameter& weight = model->parameters().parameters()[0];
    std::vector<double> values;
    for (int64_t s = 0; s < 9; ++s) {
      data.load(*loader.next(), false, LossAverage::labelled, &ctx);
      if (s == 4) {
        values = weight.value.to_vector<double>();
        values[3] = INFINITY;
        weight.value.assign(values);
      }
      if (s == 6) {
        values[3] = 0.5;  // finite again: the steps to come must not go on all the same
        weight.value.assign(values);
        step.rates_changed();  // nor for a new table of rates
      }
      step.run(data.input(), data.labels());
    }
    const std::vector<StepResult> results = step.results();
    REQUIRE(results.size() == 9);
    for (const StepResult& result : results) CHECK(result.failed == (result.step >= 4));
    CHECK(weight.value.to_vector<double>() == values);
    CHECK(step.results().empty());
  }
}
