// Interventions on runs: training with one, evaluating with several; correlations across runs.
#include "tools/interventions.h"

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <omp.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <map>

#include "tensor/error.h"
#include "tensor/io/file.h"
#include "tensor/io/safetensors.h"
#include "tools/commands.h"
#include "tools/correlate.h"
#include "tools/intervene.h"
#include "tools/run_spectra.h"
#include "tools/trainer.h"

using namespace eigentrace;

namespace {

struct TemporaryFolder {
  std::string path =
      fmt::format("{}/eigentrace-intervene-{}", std::filesystem::temp_directory_path().string(), getpid());
  TemporaryFolder() {
    std::filesystem::remove_all(path);
    std::filesystem::create_directories(path);
    omp_set_num_threads(1);  // tiny models: threads would only wait for one another
  }
  ~TemporaryFolder() {
    std::filesystem::remove_all(path);
    omp_set_num_threads(threads);
  }
  int threads = omp_get_max_threads();
};

RunConfig config_of(const std::string& model, const std::vector<std::string>& overrides) {
  const std::string yaml =
      "format: eigentrace/1\nseed: 7\ndataset: {_name_: mqar, vocab_size: 40, input_seq_length: 32, "
      "num_kv_pairs: 3, "
      "num_train_examples: 50, num_validation_examples: 20, num_test_examples: 20}\n"
      "train: {total_steps: 6, batch_size: 7, eval_every: 6, log_every: 4, warmup_steps: 2}\n";
  return read_config(yaml + model, "test", overrides).config;
}

std::string attention(const char* fn) {
  return fmt::format(
      "model: {{layer: transformer, attention_fn: {}, num_layers: 2, hidden_dim: 12, state_dim: 8, "
      "num_heads: 2, "
      "mixer: mlp, mixer_dim: 9, dropout: 0.1, embedding: true, vocab_size: 40, max_pos_embed: 32, "
      "output_dim: 40}}\n",
      fn);
}
const std::string lru =
    "model: {layer: lru, num_layers: 2, hidden_dim: 6, state_dim: 4, norm: batch, activation: full_glu, "
    "pooling: none, input_dim: 40, output_dim: 40}\n";

TrainerOptions silent(int64_t stop_before = -1) {
  TrainerOptions options;
  options.progress = false, options.stop_before = stop_before;
  return options;
}

RunFolder train(const RunConfig& config, const std::string& path) {
  RunFolder folder = RunFolder::create(path, true);
  Trainer(config, folder, silent()).run();
  RunSpectraOptions options;
  options.quiet = true;
  for (const char* stage : {"initial", "trained"}) run_spectra(folder, stage, options);
  return folder;
}

std::map<std::string, std::vector<std::byte>> tensors_of(const RunFolder& folder) {
  const SafetensorsReader reader(folder.checkpoint());
  std::map<std::string, std::vector<std::byte>> all;
  for (const auto& [name, entry] : reader.entries()) all[name] = reader.read(name).bytes;
  return all;
}

}  // namespace

TEST_CASE(
    "interventions: a run trained with a clamp has other weights, resumes to the same bits and reads "
    "clamped") {
  const TemporaryFolder temporary;
  for (const std::string& model : {attention("lin-attention"), lru}) {
    INFO(model);
    const RunFolder plain = train(config_of(model, {}), temporary.path + "/plain");
    for (const char* text : {"abs<=0.6", "freeze=initial", "freeze=mean", "abs=0.5 layers=1"}) {
      INFO(text);
      const bool lti = model == lru;
      if ((std::string(text) == "freeze=initial" && !lti) || (std::string(text) == "freeze=mean" && lti)) {
        CHECK_THROWS_AS(train(config_of(model, {fmt::format("spectral.intervention=[\"{}\"]", text)}),
                              temporary.path + "/refused"),
                        UsageError);
        continue;
      }
      const RunConfig config = config_of(model, {fmt::format("spectral.intervention=[\"{}\"]", text),
                                                 "spectral.every=3", "spectral.dtype=f64"});
      const RunFolder whole = train(config, temporary.path + "/whole");
      CHECK(tensors_of(whole) != tensors_of(plain));
      const RunFolder parts = RunFolder::create(temporary.path + "/parts", true);
      Trainer(config, parts, silent(2)).run();
      Trainer::resume(parts, silent())->run();
      CHECK(tensors_of(parts) == tensors_of(whole));
      RunSpectraOptions options;
      options.quiet = true, options.request.check = true;
      const SpectrumRecord record = weights_spectra(whole.checkpoint(), "trained", options);
      CHECK(replay_agrees(record, 1e-9));
      if (std::string(text) != "abs<=0.6") continue;
      for (const char* stage : {"step3", "step6", "trained"})
        for (const LayerSpectrum& spectrum : read_spectra(whole.spectrum(stage) + ".npz"))
          for (const double log_abs : spectrum.log_abs) CHECK(log_abs <= std::log(0.6));
    }
  }
}

TEST_CASE("interventions: softmax attention cannot be trained with one, and nothing is written") {
  const TemporaryFolder temporary;
  CHECK_THROWS_WITH_AS(train(config_of(attention("sm-attention"), {"spectral.intervention=[\"abs<=0.9\"]"}),
                             temporary.path + "/a"),
                       doctest::Contains("sm-attention"), UsageError);
  CHECK_FALSE(std::filesystem::exists(temporary.path + "/a"));
  CHECK_THROWS_AS(config_of(lru, {"spectral.intervention=[\"abs<0.9\"]"}), UsageError);
}

TEST_CASE("interventions: evaluation with and without, by ops and by replay, one row a change") {
  const TemporaryFolder temporary;
  for (const char* fn : {"sm-attention", "lin-attention"}) {
    INFO(fn);
    const RunFolder folder = train(config_of(attention(fn), {}), temporary.path + "/run");
    InterveneRequest request;
    request.changes = {"abs<=inf",       "lambda=0",    "abs<=0.9 layers=1",
                       "freeze=initial", "freeze=mean", "abs*=0.5"};
    request.dtype = DType::f64;
    const InterventionTable table = run_interventions(folder, request);
    REQUIRE(table.rows.size() == 7);
    const MetricsRow evaluated = folder.read_metrics().back();
    CHECK(table.rows[0].change == "as trained");
    CHECK(table.rows[0].evaluation.loss == doctest::Approx(evaluated.loss).epsilon(1e-5));
    CHECK(table.rows[1].evaluation.loss == doctest::Approx(table.rows[0].evaluation.loss).epsilon(1e-10));
    for (size_t n = 2; n < 7; ++n) CHECK(std::abs(table.rows[n].evaluation.loss - evaluated.loss) > 1e-7);
    CHECK(table.rows[2].path == (std::string(fn) == "sm-attention" ? "replay" : "ops"));
    CHECK(table.rows[4].path == "replay");  // another model's eigenvalues on the same batch
    request.path = InterventionPath::replay;
    const InterventionTable replayed = run_interventions(folder, request);
    for (size_t n = 0; n < 7; ++n)
      CHECK(replayed.rows[n].evaluation.loss == doctest::Approx(table.rows[n].evaluation.loss).epsilon(1e-9));
    CHECK(interventions_text(table).find("lambda=0") != std::string::npos);
    CHECK(interventions_json(table).find("\"loss_change\"") != std::string::npos);
    request.changes = {"abs<=0.9 layers=2"};
    CHECK_THROWS_AS(run_interventions(folder, request), UsageError);
  }
  InterveneOptions options;
  options.run = temporary.path + "/run";
  options.changes = {"abs<=0.5"}, options.layers = "0", options.examples = 10, options.json = true;
  CHECK(intervene_command(options) == 0);
  const std::string json = read_file(temporary.path + "/run/interventions.json");
  CHECK(json.find("eigentrace-interventions/1") != std::string::npos);
  CHECK(json.find("abs<=0.5 layers=0") != std::string::npos);
  const InterventionTable back = read_interventions(temporary.path + "/run/interventions.json");
  CHECK(interventions_json(back) + "\n" == json);
  write_atomically(temporary.path + "/broken.json",
                   "{\"format\": \"eigentrace-interventions/1\", \"rows\": 3}");
  CHECK_THROWS_AS(read_interventions(temporary.path + "/broken.json"), Error);
  CHECK_THROWS_AS(read_correlations(temporary.path + "/run/interventions.json"), Error);
  options.layers = "x";
  CHECK_THROWS_AS(intervene_command(options), UsageError);
}

TEST_CASE(
    "interventions: a run trained with one is also evaluated without it, and changes come after its own") {
  const TemporaryFolder temporary;
  const RunFolder folder =
      train(config_of(lru, {"spectral.intervention=[\"abs<=0.3\"]"}), temporary.path + "/run");
  InterveneRequest request;
  request.changes = {"abs>=0.3"};
  const InterventionTable table = run_interventions(folder, request);
  REQUIRE(table.rows.size() == 3);
  CHECK(table.rows[0].evaluation.loss == doctest::Approx(folder.read_metrics().back().loss).epsilon(1e-6));
  CHECK(table.rows[1].change == "without");
  CHECK(table.rows[1].evaluation.loss != table.rows[0].evaluation.loss);
  CHECK(table.rows[2].evaluation.loss != table.rows[1].evaluation.loss);
}

TEST_CASE(
    "correlate: runs are grouped by all but their seeds, and every statistic is held against accuracy") {
  const TemporaryFolder temporary;
  std::vector<RunFolder> folders;
  for (const int seed : {1, 2, 3})
    for (const double lr : {1e-3, 1e-2})
      folders.push_back(train(config_of(lru, {fmt::format("seed={}", seed), fmt::format("train.lr={}", lr)}),
                              fmt::format("{}/{}-{}", temporary.path, seed, lr)));
  CorrelateRequest request;
  request.figure = "loss", request.resamples = 200;
  request.statistics = {"radius.", "expanding_share", "radius_percent"};
  const CorrelationTable table = correlate_runs(folders, request);
  REQUIRE(table.groups.size() == 2);
  CHECK(table.groups[0].runs == std::vector<int64_t>{0, 2, 4});
  CHECK(table.groups[0].label == "lru lr: 0.001");
  CHECK(table.groups[1].label == "lru lr: 0.01");
  CHECK(table.groups[0].figure.n == 3);
  CHECK(table.groups[0].figure.low <= table.groups[0].figure.mean);
  const auto find = [&](const std::string& stage, const std::string& name, int64_t layer) {
    for (const StatisticCorrelation& row : table.correlations)
      if (row.stage == stage && row.statistic == name && row.layer == layer) return &row;
    return static_cast<const StatisticCorrelation*>(nullptr);
  };
  const StatisticCorrelation* mean = find("trained", "radius.mean", -1);
  REQUIRE(mean != nullptr);
  std::vector<double> radii, losses;
  for (const RunFolder& folder : folders) {
    double sum = 0;
    for (const LayerSpectrum& spectrum : read_spectra(folder.spectrum("trained") + ".npz"))
      sum += layer_statistics(spectrum).all.radius.mean / 2;
    radii.push_back(sum);
    losses.push_back(folder.read_metrics().back().loss);
  }
  const RankCorrelation expected = spearman(radii, losses);
  CHECK(mean->correlation.rho == doctest::Approx(expected.rho));
  CHECK(mean->correlation.p_value == doctest::Approx(expected.p_value));
  CHECK(mean->correlation.exact);
  CHECK(mean->q_value >= mean->correlation.p_value);
  CHECK(find("initial", "radius.q50", 1) != nullptr);
  CHECK(find("change", "radius_percent[0.9,1)", 0) != nullptr);
  CHECK(find("trained", "count", -1) == nullptr);
  CHECK(find("trained", "time_constant.mean", -1) == nullptr);  // not asked for
  bool changed = false;
  for (const StatisticChange& row : table.changes)
    if (row.group == 1 && row.statistic == "radius.mean" && row.layer == -1) {
      changed = true;
      CHECK(row.change.difference.mean == doctest::Approx(row.trained.mean - row.initial.mean).epsilon(1e-6));
      CHECK(row.change.permutations == 8);
    }
  CHECK(changed);
  CHECK(correlations_text(table, "trained").find("lru lr: 0.01") != std::string::npos);
  CHECK(correlations_json(table).find("eigentrace-correlations/1") != std::string::npos);
  const std::string file = temporary.path + "/correlations.json";
  write_atomically(file, correlations_json(table));
  CHECK(correlations_json(read_correlations(file)) == correlations_json(table));
  CHECK_THROWS_AS(correlate_runs({folders[0]}, request), UsageError);

  // a folder that holds runs stands for them, each counted once; one that holds none is an error
  std::filesystem::create_directories(temporary.path + "/empty/nothing");
  CorrelateOptions options;
  options.runs = {temporary.path + "/", folders[0].path()}, options.out = file, options.json = true;
  options.figure = "loss", options.resamples = 10, options.permutations = 10;
  CHECK(correlate_command(options) == 0);
  CHECK(read_correlations(file).runs.size() == 6);
  options.runs = {temporary.path + "/empty"};
  CHECK_THROWS_AS(correlate_command(options), UsageError);
}
