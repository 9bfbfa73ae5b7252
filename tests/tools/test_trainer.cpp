#include <doctest/doctest.h>
#include <fmt/format.h>
#include <omp.h>
#include <unistd.h>

#include <filesystem>
#include <limits>
#include <map>

#include "tensor/error.h"
#include "tensor/io/file.h"
#include "tensor/io/safetensors.h"
#include "tools/commands.h"
#include "tools/run_spectra.h"
#include "tools/trainer.h"

using namespace eigentrace;

namespace {

struct TemporaryFolder {
  std::string path =
      fmt::format("{}/eigentrace-trainer-{}", std::filesystem::temp_directory_path().string(), getpid());
  TemporaryFolder() { std::filesystem::remove_all(path); }
  ~TemporaryFolder() { std::filesystem::remove_all(path); }
};

RunConfig small_config(const std::string& attention, const std::vector<std::string>& overrides = {}) {
  const bool norm = attention == "norm-attention";
  const std::string yaml =
      fmt::format(R"(
format: eigentrace/1
seed: 7
dataset: {{_name_: mqar, vocab_size: 40, input_seq_length: 32, num_kv_pairs: 3, num_train_examples: 50, num_test_examples: 9}}
train: {{total_steps: 12, batch_size: 7, lr: 3e-3, wd: 0.1, warmup_steps: 2, eval_every: 5, log_every: 4, eval_split: test}}
model: {{layer: transformer, attention_fn: {}, {} num_layers: 2, hidden_dim: 12, state_dim: 8, num_heads: 2, mixer: mlp,
  mixer_dim: 9, dropout: 0.1, att_dropout: 0.1, embedding: true, vocab_size: 40, max_pos_embed: 32, output_dim: 40}}
)",
                  attention, norm ? "norm_fn: softplus, approx_fn: elu, offset: true, dim_conv: 3," : "");
  return read_config(yaml, "test", overrides).config;
}

/// Bytes of every tensor of a checkpoint, by name.
std::map<std::string, std::vector<std::byte>> tensors_of(const std::string& path) {
  const SafetensorsReader reader(path);
  std::map<std::string, std::vector<std::byte>> all;
  for (const auto& [name, entry] : reader.entries()) all[name] = reader.read(name).bytes;
  return all;
}

/// Loss and accuracy of every metrics row (speeds differ from run to run).
std::vector<std::string> rows_of(const RunFolder& folder) {
  std::vector<std::string> rows;
  for (const MetricsRow& row : folder.read_metrics())
    rows.push_back(fmt::format("{} {} {} {} {} {}", row.step, row.split, row.loss, row.accuracy,
                               row.learning_rate, row.gradient_norm));
  return rows;
}

/// No live line in the tests' output.
TrainerOptions silent(int64_t stop_before = -1) {
  TrainerOptions options;
  options.progress = false;
  options.stop_before = stop_before;
  return options;
}

RunFolder train_whole(const RunConfig& config, const std::string& path, int threads) {
  const int before = omp_get_max_threads();
  omp_set_num_threads(threads);
  const RunFolder folder = RunFolder::create(path, true);
  Trainer(config, folder, silent()).run();
  omp_set_num_threads(before);
  return folder;
}

}  // namespace

TEST_CASE(
    "trainer: the same bits for 1 and 2 threads, for a re-run, and across stop and resume at any step") {
  const TemporaryFolder temporary;
  for (const char* attention : {"sm-attention", "lin-attention", "norm-attention"}) {
    INFO(attention);
    const RunConfig config = small_config(attention);
    const RunFolder one = train_whole(config, temporary.path + "/one", 1);
    const RunFolder two = train_whole(config, temporary.path + "/two", 2);
    const auto expected = tensors_of(one.checkpoint());
    CHECK(expected.size() > 60);  // parameters and two moments each
    CHECK(tensors_of(two.checkpoint()) == expected);
    CHECK(rows_of(two) == rows_of(one));
    for (const int64_t stop : {1, 6, 8, 11}) {
      const RunFolder parts = RunFolder::create(temporary.path + "/parts", true);
      const RunInfo stopped = Trainer(config, parts, silent(stop)).run();
      CHECK(stopped.state == "stopped");
      CHECK(stopped.step == stop);
      const RunInfo finished = Trainer::resume(parts, silent())->run();
      CHECK(finished.state == "finished");
      CHECK(tensors_of(parts.checkpoint()) == expected);
      CHECK(rows_of(parts) == rows_of(one));
    }
  }
}

TEST_CASE("trainer: another seed gives other weights") {  // the comparison above can fail
  const TemporaryFolder temporary;
  const RunFolder a = train_whole(small_config("sm-attention"), temporary.path + "/a", 1);
  const RunFolder b = train_whole(small_config("sm-attention", {"seed=8"}), temporary.path + "/b", 1);
  CHECK(tensors_of(a.checkpoint()) != tensors_of(b.checkpoint()));
}

TEST_CASE("trainer: a step that is not finite stops the run, naming step and op, and the folder says so") {
  const TemporaryFolder temporary;
  const RunFolder folder = RunFolder::create(temporary.path, true);
  Trainer trainer(small_config("sm-attention"), folder, silent());
  Parameter* weight = trainer.model().parameters().find("layers.1.attention.out_proj.weight");
  REQUIRE(weight != nullptr);
  std::vector<float> values = weight->value.to_vector<float>();
  values[5] = std::numeric_limits<float>::infinity();
  weight->value.assign(values);
  std::string message;
  try {
    trainer.run();
  } catch (const Error& error) {
    message = error.what();
  }
  INFO(message);
  CHECK(message.find("step 0") != std::string::npos);
  CHECK(message.find("op linear") != std::string::npos);
  CHECK(message.find("layers.1") != std::string::npos);
  CHECK(folder.read_info().state == "failed");
}

TEST_CASE("trainer: a run is not overwritten unasked, a finished one not resumed") {
  const TemporaryFolder temporary;
  const RunFolder folder =
      train_whole(small_config("lin-attention", {"train.total_steps=3"}), temporary.path, 1);
  CHECK_THROWS_AS(RunFolder::create(temporary.path, false), UsageError);
  CHECK_THROWS_AS(Trainer::resume(folder, {}), UsageError);
  CHECK_THROWS_AS(RunFolder::open(temporary.path + "/nothing"), Error);
}

TEST_CASE("trainer: a disk that fills up at any write leaves the last checkpoint whole") {
  const TemporaryFolder temporary;
  const RunConfig config = small_config("sm-attention", {"train.checkpoint_every=3"});
  const RunFolder folder = RunFolder::create(temporary.path, true);
  Trainer(config, folder, silent(4)).run();
  const auto saved = tensors_of(folder.checkpoint());
  int64_t failures = 0;
  for (int64_t at = 0; at < 12; ++at) {
    std::unique_ptr<Trainer> trainer = Trainer::resume(folder, silent());
    io_faults().calls = 0;
    io_faults().fail_at = at;
    bool failed = false;
    try {
      trainer->run();
    } catch (const Error&) {
      failed = true;
    }
    io_faults().fail_at = -1;
    failures += failed ? 1 : 0;
    // Whatever was written last is a whole checkpoint: either the old one or that of a later step.
    SafetensorsReader(folder.checkpoint()).verify_checksum();
    if (!failed) break;
  }
  CHECK(failures >= 6);
  CHECK(!saved.empty());
}

TEST_CASE("trainer: spectra of a run are read before and after training, and replay") {
  const TemporaryFolder temporary;
  const RunFolder folder =
      train_whole(small_config("norm-attention", {"spectral.dtype=f64"}), temporary.path, 2);
  RunSpectraOptions options;
  options.quiet = true;
  options.request.check = true;
  options.batch = 3;
  for (const char* stage : {"initial", "trained"}) {
    const SpectrumRecord record = run_spectra(folder, stage, options);
    REQUIRE(record.layers.size() == 2);
    CHECK(record.layers[0].spectrum.shape == std::vector<int64_t>{3, 31, 2});
    CHECK(replay_agrees(record, 1e-10));
    CHECK(std::filesystem::exists(folder.spectrum(stage) + ".npz"));
    CHECK(std::filesystem::exists(folder.spectrum(stage) + ".json"));
  }
}

TEST_CASE("trainer: weights trained with one vocabulary refuse data of another") {
  const TemporaryFolder temporary;
  std::filesystem::create_directories(temporary.path);
  const RunConfig config = read_config(R"(
format: eigentrace/1
dataset: {_name_: listops, num_train_examples: 40, num_validation_examples: 4, num_test_examples: 4}
train: {total_steps: 2, batch_size: 2}
model: {layer: transformer, attention_fn: lin-attention, num_layers: 1, hidden_dim: 8, state_dim: 4, num_heads: 1,
  mixer: none, embedding: true, vocab_size: 18, max_pos_embed: 2048, classifier: true, mixer_dim: 4, output_dim: 10}
)",
                                       "test")
                               .config;
  const std::unique_ptr<Task> task = make_task(config.dataset);
  const std::unique_ptr<Model> model = make_model(config.model, 1, DType::f32);
  const std::string path = temporary.path + "/weights.safetensors";
  std::vector<std::string> symbols = task->symbols();
  REQUIRE(symbols.size() == 18);
  symbols.push_back("\n\"é\t");  // names survive whatever is in them
  save_weights(path, *model, config, {symbols, {}});
  CHECK(checkpoint_symbols(path) == symbols);
  RunSpectraOptions options;
  options.quiet = true;
  CHECK_THROWS_WITH_AS(weights_spectra(path, "trained", options), doctest::Contains("vocabulary"), Error);
}

TEST_CASE("trainer: MAD is evaluated by the macro accuracy of each batch, and stops at it") {
  const TemporaryFolder temporary;
  RunConfig config = read_config(R"(
format: eigentrace/1
dataset: {_name_: mad, task: in-context-recall, seq_len: 32, num_train_examples: 64, num_test_examples: 20}
train: {total_steps: 8, batch_size: 16, lr: 3e-3, schedule: constant, eval_every: 8, log_every: 2, stop_criterion: 0}
model: {layer: mad, mixer: mamba2, state_dim: 8, num_heads: 2, hidden_dim: 16}
)",
                                 "test")
                         .config;
  const RunFolder folder = RunFolder::create(temporary.path, true);
  Trainer trainer(config, folder, silent());
  const RunInfo info = trainer.run();
  const std::vector<MetricsRow> rows = folder.read_metrics();
  REQUIRE(rows.size() == 5);
  CHECK(!rows[3].macro_accuracy);
  CHECK(rows[3].loss < rows[0].loss);
  REQUIRE(rows[4].macro_accuracy);
  CHECK(info.reason == fmt::format("accuracy {:.4f} > 0", *rows[4].macro_accuracy));
  // A head that says 9 always: right for one of the classes of each batch.
  for (const char* name : {"head.linear.weight", "head.linear.bias"}) {
    Parameter* p = trainer.model().parameters().find(name);
    std::vector<float> values(static_cast<size_t>(p->value.numel()), 0.0f);
    if (p->value.rank() == 1) values[9] = 1;
    p->value.assign(values);
  }
  const Evaluation found = evaluate(trainer.ctx(), trainer.model(), trainer.task(), Split::test, 16, false);
  double expected = 0;
  for (int64_t first : {0, 16}) {
    std::vector<int64_t> indices;
    for (int64_t i = first; i < std::min<int64_t>(first + 16, 20); ++i) indices.push_back(i);
    Batch batch;
    trainer.task().make(Split::test, indices, batch);
    std::map<int32_t, int> classes;
    for (int64_t i = 0; i < batch.label_count; ++i) ++classes[batch.labels[static_cast<size_t>(i)]];
    REQUIRE(classes.count(9) == 1);
    expected += 0.5 / static_cast<double>(classes.size());
  }
  CHECK(*found.macro_accuracy == doctest::Approx(expected).epsilon(1e-12));
  CHECK(found.accuracy != doctest::Approx(expected).epsilon(1e-6));
  CHECK(found.score() == *found.macro_accuracy);
}

TEST_CASE("mad: the suite trains six runs a setting, keeps them, and goes on where it stopped") {
  const TemporaryFolder temporary;
  MadOptions options;
  options.config =
      std::string(EIGENTRACE_TEST_DATA) + "/../tasks/experiments/mad-in-context-recall-sm-attention.yaml";
  options.out = temporary.path;
  options.tasks = {"memorization"};
  options.baseline_only = true;
  options.quiet = true;
  options.set = {"train.num_epochs=1",           "dataset.num_train_examples=128",
                 "dataset.num_test_examples=16", "model.hidden_dim=16",
                 "model.state_dim=16",           "model.num_layers=2"};
  CHECK(mad_command(options) == 0);
  int64_t runs = 0;
  for (const auto& run : std::filesystem::directory_iterator(temporary.path + "/memorization/baseline")) {
    CHECK(RunFolder::open(run.path()).read_info().state == "finished");
    ++runs;
  }
  CHECK(runs == 6);
  const auto first =
      std::filesystem::last_write_time(temporary.path + "/memorization/baseline/lr0.0001-wd0/run.json");
  CHECK(mad_command(options) == 0);  // all finished: nothing is trained again
  CHECK(std::filesystem::last_write_time(temporary.path + "/memorization/baseline/lr0.0001-wd0/run.json") ==
        first);
  options.tasks = {"memory"};
  CHECK_THROWS_AS(mad_command(options), UsageError);
}
