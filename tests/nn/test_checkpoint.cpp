#include <doctest/doctest.h>

#include <unistd.h>

#include <filesystem>

#include "nn/checkpoint.h"
#include "tensor/error.h"
#include "tensor/io/safetensors.h"
#include "tests/nn/model_testing.h"

using namespace eigentrace;

namespace {

const std::string linear_attention =
    "layer: transformer, attention_fn: lin-attention, num_heads: 2, vocab_size: 11";
/// One of every other family.
const std::vector<std::string> families = {
    linear_attention,
    "layer: transformer, attention_fn: sm-attention, vocab_size: 11",
    "layer: transformer, attention_fn: norm-attention, dim_conv: 4, vocab_size: 11",
    "layer: mamba, num_heads: 2, vocab_size: 11, pooling: none",
    "layer: mamba, num_heads: 2, pseudoLTI: True, vocab_size: 11, pooling: none",
    "layer: mamba, version: mamba1, vocab_size: 11, pooling: none",
    "layer: lru, norm: batch, input_dim: 11, pooling: none",
    "layer: s5, norm: batch, num_blocks: 1, input_dim: 11, pooling: none",
    "layer: s4, norm: batch, input_dim: 11, pooling: none, seq_len: 12",
};

RunConfig run_config(const std::string& family = linear_attention) {
  return read_config(R"(
format: eigentrace/1
seed: 3
dataset: {_name_: mqar}
train: {total_steps: 10, lr: 1e-2}
model: {)" + family + ", num_layers: 1, hidden_dim: 8, state_dim: 4, output_dim: 11, dropout: 0.3}",
                     "test")
      .config;
}

struct Run {
  Run(const std::string& family = linear_attention) : config(run_config(family)) {}
  RunConfig config;
  std::unique_ptr<Model> model = make_model(config.model, config.seed, DType::f32);
  Optimiser optimiser{model->parameters(),
                      make_groups(model->parameters(), config.model, config.train, Dialect::ours),
                      optimiser_options(config.train)};
  LearningRates rates{config.train, 1};
  Context ctx;

  void steps(int64_t from, int64_t to) {
    for (int64_t s = from; s < to; ++s) {
      ctx.set_step(config.seed, static_cast<uint64_t>(s));
      Tape tape(ctx);
      Forward forward(tape, model->parameters());
      forward.dropout = forward.batch_statistics = true;
      const ModelInput input = token_input(random_tokens(2 * 12, 11, static_cast<uint64_t>(s)), 2, 12);
      tape.backward(model->loss(forward, input, label_all(24, 11, 1)).value);
      optimiser.step(ctx, rates.at(optimiser.groups(), s));
    }
  }
  std::vector<double> weights() const {
    std::vector<double> all;
    for (const Parameter& p : model->parameters().parameters())
      for (double v : p.value.to_vector<double>()) all.push_back(v);
    for (const Buffer& b : model->parameters().buffers())
      for (double v : b.value.to_vector<double>()) all.push_back(v);
    return all;
  }
};

struct TemporaryFile {
  std::string path = (std::filesystem::temp_directory_path() /
                      ("eigentrace_checkpoint_" + std::to_string(getpid()) + ".safetensors"))
                         .string();
  ~TemporaryFile() { std::filesystem::remove(path); }
};

}  // namespace

TEST_CASE("checkpoint: stopping anywhere and going on gives the bits of an uninterrupted run") {
  Run whole;
  whole.steps(0, 7);
  for (int64_t stop : {0, 1, 4}) {
    TemporaryFile file;
    {
      Run first;
      first.steps(0, stop);
      TrainState state;
      state.step = stop, state.numbers = {{"x", 0.1}, {"big", 1e300}};
      state.plateau = {0.25, 0.5, 3};
      save_checkpoint(file.path, *first.model, first.optimiser, first.config, state);
    }
    Run second;
    const TrainState state = load_checkpoint(file.path, *second.model, second.optimiser);
    CHECK(state.step == stop);
    CHECK(state.numbers == std::map<std::string, double>{{"x", 0.1}, {"big", 1e300}});
    CHECK(state.plateau.best == 0.25);
    CHECK(state.plateau.count == 3);
    second.steps(stop, 7);
    CHECK(second.weights() == whole.weights());
  }
}

TEST_CASE("checkpoint: every family goes on from its file, running statistics included") {
  for (const std::string& family : families) {
    INFO(family);
    Run whole(family), first(family), second(family);
    whole.steps(0, 4);
    first.steps(0, 2);
    TemporaryFile file;
    save_checkpoint(file.path, *first.model, first.optimiser, first.config, TrainState{2, {}, {}});
    CHECK(load_checkpoint(file.path, *second.model, second.optimiser).step == 2);
    second.steps(2, 4);
    CHECK(second.weights() == whole.weights());
    CHECK(first.weights() != whole.weights());
  }
}

TEST_CASE("checkpoint: a model comes back with its configuration, in either type") {
  TemporaryFile file;
  Run run;
  run.steps(0, 2);
  save_weights(file.path, *run.model, run.config);
  const LoadedModel f32 = load_model(file.path, DType::f32), f64 = load_model(file.path, DType::f64);
  CHECK(f32.config == run.config);
  CHECK(checkpoint_config(file.path) == run.config);
  const auto first = [](const Model& m) { return m.parameters().parameters()[0].value.to_vector<double>(); };
  CHECK(first(*f32.model) == first(*run.model));
  CHECK(first(*f64.model) == first(*run.model));
  CHECK(f64.model->parameters().dtype() == DType::f64);
  CHECK_THROWS_WITH_AS(load_checkpoint(file.path, *run.model, run.optimiser), doctest::Contains("state"),
                       Error);
}

TEST_CASE("checkpoint: tensors that are missing, unknown or of another shape are named") {
  TemporaryFile file;
  Run run;
  const std::vector<float> values(33);
  const auto message = [&](const SafetensorsArrays& arrays) -> std::string {
    write_safetensors(file.path, arrays);
    try {
      load_weights(file.path, *run.model);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  const std::string text = message(
      {{"norm.weight", HostView({3}, std::vector<float>(3))}, {"norm.wieght", HostView({33}, values)}});
  CHECK(text.find("1 the model does not have: norm.wieght") != std::string::npos);
  CHECK(text.find("norm.weight ([3] in the file, [8] in the model)") != std::string::npos);
  CHECK(text.find("missing: encoder.word_embeddings.weight") != std::string::npos);
  CHECK(text.find(" more") != std::string::npos);
  CHECK_THROWS_AS(load_weights("/nowhere/x.safetensors", *run.model), Error);
}
