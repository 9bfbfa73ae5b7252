// `eigentrace import` from file to file.
#include <filesystem>

#include "nn/checkpoint.h"
#include "tests/tensor/io_testing.h"
#include "tools/commands.h"

using namespace eigentrace;

namespace {

const std::string config = R"(
format: eigentrace/1
dataset: {_name_: mqar, vocab_size: 5, input_seq_length: 4, num_kv_pairs: 1, num_train_examples: 2}
train: {total_steps: 10}
model: {layer: transformer, attention_fn: norm-attention, norm_fn: softplus, offset: true, offset_init: exp,
        dim_conv: 3, num_layers: 1, hidden_dim: 4, state_dim: 2, num_heads: 2, mixer: none,
        vocab_size: 5, output_dim: 5}
)";

}  // namespace

TEST_CASE("import: a trainer's .pth becomes a checkpoint that carries its configuration") {
  const TestFolder folder;
  write_atomically(folder / "c.yaml", config);
  ImportOptions options;
  options.file = std::string(EIGENTRACE_TEST_DATA) + "/nn/data/pth/trainer.pth";
  options.config = folder / "c.yaml";
  options.out = folder / "study.safetensors";
  for (const char* dtype : {"f32", "f64"}) {
    options.dtype = dtype;
    CHECK(import_command(options) == 0);
    const LoadedModel loaded = load_model(options.out, DType::f64);
    CHECK(loaded.config == read_config(config, "test").config);
    const Parameter* decoder = loaded.model->parameters().find("decoder.weight");
    REQUIRE(decoder);
    const std::vector<double> values = decoder->value.to_vector<double>();
    for (size_t i = 0; i < values.size(); i++) CHECK(values[i] == 12 + double(i) / 8);
    options.force = true;
  }
  // Nothing is replaced unasked, and nothing is written where the tensors do not fit.
  options.force = false;
  CHECK_THROWS_AS(import_command(options), UsageError);
  options.out = folder / "other.safetensors";
  options.set = {"model.num_layers=2"};
  CHECK(contains(error_of([&] { import_command(options); }), "9 missing: layers.1.attention.Wvqkn.bias"));
  CHECK_FALSE(std::filesystem::exists(options.out));
  options.set = {"model.num_layer=2"};
  CHECK_THROWS_AS(import_command(options), UsageError);
  options.dtype = "f16";
  CHECK_THROWS_AS(import_command(options), UsageError);
}
