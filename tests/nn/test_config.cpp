#include <doctest/doctest.h>

#include <filesystem>
#include <string>

#include "nn/config/config.h"
#include "nn/config/field_io.h"
#include "tensor/error.h"

using namespace eigentrace;

namespace {

const std::string study = R"(
seed: 1919
save: False
optimization: {jax_seed: 0}
wandb: {project: x}
dataset: {_name_: mqar, name: MQAR, input_seq_length: 512, num_kv_pairs: 64, fixed_size: True}
train: {total_steps: 40_000, batch_size: 64, lr: 4.6416e-4, wd: 1e-1, betas: [0.9, 0.999], warmup: 4000,
        eval_every: 200, stop_criterion: 0.99, lr_patience: 200}
model: {layer: transformer, attention_fn: sm-attention, use_flash: True, num_layers: 2, hidden_dim: 128,
        state_dim: 128, num_heads: 1, att_dropout: 0.0, norm: layer, embedding: True, vocab_size: 8192,
        max_pos_embed: 512, mixer: none, mixer_dim: 128, dropout: 0.1, classifier: False, pooling: mean,
        dual: False, input_dim: 1, output_dim: 8192, learn_A: False}
)";
const std::string ours = R"(
format: eigentrace/1
dataset: {_name_: mqar}
train: {total_steps: 100}
model: {layer: transformer, hidden_dim: 32, state_dim: 32, vocab_size: 8192, output_dim: 8192}
)";

std::string message_of(const std::string& text, const std::vector<std::string>& overrides = {}) {
  try {
    read_config(text, "run.yaml", overrides);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}
bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("config: a file of the study is read with its own defaults and its dead keys are told") {
  const LoadedConfig loaded = read_config(study, "run.yaml");
  const RunConfig& c = loaded.config;
  CHECK(c.dialect == Dialect::study);
  CHECK(*c.train.total_steps == 40000);
  CHECK(c.train.lr == 4.6416e-4);
  CHECK(c.train.wd == 0.1);
  CHECK(c.train.schedule == ScheduleKind::published);
  CHECK(c.train.eval_split == EvalSplit::test);
  CHECK(std::get<MqarConfig>(c.dataset).published_split);
  CHECK(std::get<MqarConfig>(c.dataset).num_kv_pairs == 64);
  const auto& model = std::get<TransformerConfig>(c.model);
  CHECK(model.attention_fn == AttentionKind::softmax);
  CHECK(model.max_pos_embed == 512);
  std::string all;
  for (const std::string& notice : loaded.notices) all += notice + "\n";
  for (const char* key :
       {"train.warmup ", "train.lr_patience ", "model.use_flash ", "model.learn_A ", "model.pooling ",
        "model.mixer_dim ", "model.input_dim ", "dataset.name ", "wandb ", "optimization "})
    CHECK_MESSAGE(has(all, key), key << "is missing in\n" << all);
}

TEST_CASE("config: the printed form of either dialect is ours and reads back to the same") {
  for (const std::string& text : {study, ours}) {
    const RunConfig c = read_config(text, "run.yaml").config;
    const LoadedConfig again = read_config(to_yaml(c), "printed");
    CHECK(again.config == c);
    CHECK(again.config.dialect == Dialect::ours);
    for (const std::string& notice : again.notices) CHECK(!has(notice, "printed:"));  // no dead key
    CHECK(read_config(to_json(c), "json").config == c);                               // JSON is YAML
    CHECK(read_model_config(to_json(c.model)).index() == c.model.index());
    RunConfig other = c;
    other.train.lr *= 2;
    CHECK(!(other == c));
  }
}

TEST_CASE("config: an unknown key is an error that names place and nearest key, in both dialects") {
  CHECK(has(message_of(ours + "spectral: {batsh: 3}\n"),
            "run.yaml:6: spectral.batsh: there is no such key; did you mean 'batch'?"));
  CHECK(has(message_of(study + "sed: 3\n"), "did you mean 'seed'?"));
  CHECK(has(message_of(study, {"model.attention=lin-attention"}), "did you mean 'attention_fn'?"));
  CHECK(has(message_of(ours, {"model.attention_fn=softmax"}), "expected one of sm-attention"));
  CHECK(has(message_of(ours, {"dataset._name_=mqr"}), "mqar"));
  CHECK(has(message_of(ours, {"zzzzzzzzzzz=1"}), "known are"));
}

TEST_CASE("config: our dialect refuses keys without effect and says why") {
  CHECK(has(message_of(ours, {"train.warmup=3"}), "train.warmup: has no effect: training is by steps"));
  CHECK(has(message_of(ours, {"model.norm_fn=exp"}), "model.norm_fn: has no effect: attention_fn is not"));
  CHECK(has(message_of(ours, {"model.learn_A=True"}), "there is no such key"));
  CHECK(has(message_of(ours, {"train.ssm_lr=1e-3"}), "only s4, s5 and lru read it"));
  CHECK(has(message_of(ours, {"model.input_dim=3"}), "embedding is True"));
  CHECK(message_of(ours, {"model.attention_fn=norm-attention", "model.norm_fn=exp"}).empty());
}

TEST_CASE(
    "config: values of the wrong type, keys twice and files that are no YAML are errors with their line") {
  CHECK(has(message_of(ours, {"train.lr=fast"}), "train.lr: expected a finite number, found 'fast'"));
  CHECK(has(message_of(ours, {"train.lr='1e-3'"}), "in quotes"));
  CHECK(has(message_of(ours, {"train.lr=.inf"}), "a finite number"));
  CHECK(has(message_of(ours, {"train.total_steps=1e3"}), "expected an integer"));
  CHECK(has(message_of(ours, {"train.total_steps=99999999999999999999"}), "expected an integer"));
  CHECK(has(message_of(ours, {"seed=-1"}), "not negative"));
  CHECK(has(message_of(ours, {"model.embedding=maybe"}), "True or False"));
  CHECK(has(message_of(ours, {"train.betas=0.9"}), "a list"));
  CHECK(has(message_of(ours, {"train.betas=[0.9]"}), "two numbers"));
  CHECK(has(message_of(ours, {"train"}), "expected section.key=value"));
  CHECK(has(message_of(ours, {"train.total_steps.x=1"}), "below a value"));
  CHECK(has(message_of("seed: 1\nseed: 2\n"), "run.yaml:2: the key 'seed' stands twice"));
  CHECK(has(message_of("a: [1, 2\nb: 3"), "not YAML"));
  CHECK(has(message_of(std::string(100000, '[')), "brackets"));
  CHECK(has(message_of("- 1\n- 2\n"), "section"));
  CHECK(has(message_of("format: eigentrace/9\n"), "expected eigentrace/1"));
  CHECK(has(message_of(""), "is missing"));
}

TEST_CASE("config: YAML 1.1 scalars") {
  const auto steps = [](const char* text) {
    return *read_config(ours, "x", {std::string("train.total_steps=") + text}).config.train.total_steps;
  };
  CHECK(steps("40_000") == 40000);
  CHECK(steps("+7") == 7);
  CHECK(has(message_of(ours, {"train.total_steps=_7"}), "an integer"));
  for (const char* yes : {"True", "true", "yes", "on", "TRUE"})
    CHECK(read_config(ours, "x", {std::string("model.use_gate=") + yes}).config.model.index() == 0);
  CHECK(read_config(ours, "x", {"train.wd=1"}).config.train.wd == 1);
  CHECK(!read_config(ours, "x", {"train.stop_criterion=null"}).config.train.stop_criterion);
}

TEST_CASE("config: sizes that cannot be are refused by name") {
  CHECK(has(message_of(ours, {"model.num_heads=3"}), "num_heads = 3 does not divide hidden_dim = 32"));
  CHECK(has(message_of(ours, {"model.hidden_dim=0"}), "model.hidden_dim: expected at least 1"));
  CHECK(has(message_of(ours, {"model.dropout=1"}), "expected 0 to below 1"));
  CHECK(has(message_of(ours, {"model.mixer=mlp"}), "model.mixer_dim: expected at least 1"));
  CHECK(has(message_of(ours, {"model.classifier=True", "model.pooling=last"}), "pooling: expected mean"));
  CHECK(has(message_of(ours, {"train.warmup_steps=100"}), "less than total_steps"));
  CHECK(has(message_of(ours, {"train.batch_size=0"}), "batch_size: expected at least 1"));
  CHECK_THROWS_AS(read_model_config(R"({"layer": "s5", "hidden_dim": 8, "state_dim": 12, "num_blocks": 5})"),
                  UsageError);
  CHECK_THROWS_AS(
      read_model_config(R"({"layer": "lru", "hidden_dim": 8, "state_dim": 8, "r_min": 0.9, "r_max": 0.5})"),
      UsageError);
  CHECK_THROWS_AS(
      read_model_config(
          R"({"layer": "mamba", "hidden_dim": 8, "state_dim": 6, "num_heads": 4, "pseudoLTI": true})"),
      UsageError);
}

TEST_CASE("config: the model is held to the data") {
  const RunConfig c = read_config(ours, "x").config;
  TaskShape data;
  data.time = 512, data.vocabulary = data.classes = 9000, data.per_position = true;
  ModelConfig model = c.model;
  CHECK_THROWS_WITH_AS(fit_model(model, data), doctest::Contains("vocab_size: the data have 9000"),
                       UsageError);
  model = TransformerConfig{};
  fit_model(model, data);
  CHECK(std::get<TransformerConfig>(model).vocab_size == 9000);
  CHECK(std::get<TransformerConfig>(model).output_dim == 9000);
  std::get<TransformerConfig>(model).max_pos_embed = 511;
  CHECK_THROWS_WITH_AS(fit_model(model, data), doctest::Contains("max_pos_embed"), UsageError);
  model = SsmConfig(SsmKind::lru);
  data.vocabulary = 0, data.features = 3, data.classes = 10, data.per_position = false;
  CHECK_THROWS_WITH_AS(fit_model(model, data), doctest::Contains("input_dim"), UsageError);
  std::get<SsmConfig>(model).input_dim = 0;
  fit_model(model, data);
  CHECK(std::get<SsmConfig>(model).seq_len == 512);
}

TEST_CASE("config: the oddities a published run meets are told, and a run of ours meets none") {
  const auto told = [](const std::string& text, const std::vector<std::string>& overrides, const char* part) {
    for (const std::string& notice : read_config(text, "run.yaml", overrides).notices)
      if (has(notice, part)) return true;
    return false;
  };
  CHECK(told(study, {}, "learning rate is constant"));
  CHECK(!told(study, {"train.warmup_steps=10"}, "learning rate is constant"));
  CHECK(told(study, {}, "keys of training example"));
  CHECK(told(study, {}, "test set"));
  CHECK(read_config(ours, "run.yaml").notices.empty());
  CHECK(told(ours, {"model.attention_fn=norm-attention", "model.norm_fn=exp", "model.offset=True"},
             "underflows"));
  const std::string folder = std::string(EIGENTRACE_TEST_DATA) + "/../tasks/experiments/";
  const auto file = [&](const char* name, const char* part) {
    for (const std::string& notice : read_config_file(folder + name).notices)
      if (has(notice, part)) return true;
    return false;
  };
  CHECK(file("mqar-s4.yaml", "move up the loss"));
  CHECK(file("mqar-s4.yaml", "all_positions"));
  CHECK(file("wikitext-lru.yaml", "names no parameter of LRU"));
  CHECK(file("wikitext-lru.yaml", "takes the perplexity for an accuracy"));
  CHECK(!file("mqar-mamba2.yaml", "learning rate is constant"));
}

TEST_CASE("config: nearest finds the key with the smallest edit distance, and nothing for nonsense") {
  const std::vector<std::string> keys = {"num_layers", "num_heads", "hidden_dim"};
  CHECK(nearest("numheads", keys) == "num_heads");
  CHECK(nearest("Hidden_Dim", keys) == "hidden_dim");
  CHECK(nearest("xyzzy", keys).empty());
  CHECK(nearest("", keys).empty());
}

TEST_CASE("config: every configuration file of the repository reads, prints and reads back") {
  namespace fs = std::filesystem;
  int read = 0;
  for (const auto& entry : fs::directory_iterator(fs::path(EIGENTRACE_TEST_DATA) / "../tasks/experiments")) {
    if (entry.path().extension() != ".yaml") continue;
    INFO(entry.path().string());
    const RunConfig c = read_config_file(entry.path().string()).config;
    CHECK(read_config(to_yaml(c), "printed").config == c);
    ++read;
  }
  CHECK(read > 0);
}
