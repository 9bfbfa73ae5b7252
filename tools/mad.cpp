// `eigentrace mad`: the MAD suite's protocol. Every setting of a task (its baseline, then each difficulty
// change alone) is trained at three learning rates with and without weight decay; the best of the six runs is
// the setting's accuracy and the mean over settings the task's score (arXiv 2403.17844).
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "tensor/error.h"
#include "tensor/io/json_writer.h"
#include "tools/commands.h"
#include "tools/trainer.h"

namespace eigentrace {
namespace {

struct Setting {
  std::string name;
  double best = 0;       ///< macro-averaged accuracy of the best run
  std::string best_run;  ///< "lr0.0005-wd0"
  int64_t finished = 0;  ///< of the six runs
};

struct Score {
  std::string task;
  std::vector<Setting> settings;
  /// Mean of the settings that have a finished run; NaN if there is none.
  double mean() const {
    double sum = 0, count = 0;
    for (const Setting& setting : settings)
      if (setting.finished > 0) sum += setting.best, count += 1;
    return count > 0 ? sum / count : std::nan("");
  }
};

/// What a setting changes, as a folder's name: "baseline", "vocab_size-32", …
std::string setting_name(const MadConfig& setting, const MadConfig& baseline) {
  if (setting.vocab_size != baseline.vocab_size) return fmt::format("vocab_size-{}", setting.vocab_size);
  if (setting.seq_len != baseline.seq_len) return fmt::format("seq_len-{}", setting.seq_len);
  if (setting.num_train_examples != baseline.num_train_examples)
    return fmt::format("num_train_examples-{}", setting.num_train_examples);
  if (setting.frac_noise != baseline.frac_noise) return fmt::format("frac_noise-{}", setting.frac_noise);
  if (setting.num_tokens_to_copy != baseline.num_tokens_to_copy)
    return fmt::format("num_tokens_to_copy-{}", setting.num_tokens_to_copy);
  return "baseline";
}

/// Trains one of the six runs, or goes on with it, or leaves it if it is finished. Returns its state.
std::string train_run(const RunConfig& config, const std::string& path, const TrainerOptions& how) {
  std::string state;
  if (std::filesystem::exists(path + "/run.json")) {
    const RunFolder folder = RunFolder::open(path);
    state = folder.read_info().state;
    if (state != "finished") state = Trainer::resume(folder, how)->run().state;
  } else {
    state = Trainer(config, RunFolder::create(path, false), how).run().state;
  }
  return state;
}

/// The last evaluation's macro-averaged accuracy: the last epoch's weights count, not the best.
double final_accuracy(const std::string& path) {
  double accuracy = std::nan("");
  for (const MetricsRow& row : RunFolder::open(path).read_metrics())
    if (row.macro_accuracy) accuracy = *row.macro_accuracy;
  return accuracy;
}

void print_json(const std::vector<Score>& scores) {
  JsonWriter json(JsonWriter::Style::pretty);
  json.begin_array();
  for (const Score& score : scores) {
    json.begin_object().field("task", score.task).field("score", score.mean()).key("settings").begin_array();
    for (const Setting& s : score.settings)
      json.begin_object()
          .field("name", s.name)
          .field("accuracy", s.best)
          .field("run", s.best_run)
          .field("finished", s.finished)
          .end_object();
    json.end_array().end_object();
  }
  fmt::print("{}\n", json.end_array().text());
}

}  // namespace

int mad_command(const MadOptions& options) {
  const std::vector<std::string> known = mad_tasks();
  for (const std::string& task : options.tasks)
    if (std::find(known.begin(), known.end(), task) == known.end())
      fail_usage(fmt::format("mad: no task '{}'; expected some of {}", task, fmt::join(known, ", ")));
  const RunConfig base = read_config_file(options.config, options.set).config;
  if (!std::holds_alternative<MadModelConfig>(base.model) || !std::holds_alternative<MadConfig>(base.dataset))
    fail_usage(fmt::format("mad: {}: a data set mad and a model of layer mad expected", options.config));
  const MadConfig& given = std::get<MadConfig>(base.dataset);
  TrainerOptions how;
  how.device = parse_device(options.device);
  how.progress = !options.quiet;

  std::vector<Score> scores;
  for (const std::string& task : options.tasks.empty() ? known : options.tasks) {
    Score& score = scores.emplace_back();
    score.task = task;
    const std::vector<MadConfig> settings = mad_settings(task);
    for (MadConfig setting : settings) {
      Setting& result = score.settings.emplace_back();
      result.name = setting_name(setting, settings[0]);
      if (options.baseline_only && result.name != "baseline") {
        score.settings.pop_back();
        continue;
      }
      setting.seed = given.seed;
      setting.num_test_examples = given.num_test_examples;
      if (given.num_train_examples > 0) setting.num_train_examples = given.num_train_examples;  // for trials
      for (const double rate : {1e-4, 5e-4, 1e-3})
        for (const double decay : {0.0, 0.1}) {
          RunConfig config = base;
          config.dataset = setting;
          config.train.lr = rate, config.train.wd = decay;
          MadModelConfig& model = std::get<MadModelConfig>(config.model);
          model.auto_encoder = task == "compression";
          const std::string run = fmt::format("lr{}-wd{}", rate, decay);
          const std::string path = fmt::format("{}/{}/{}/{}", options.out, task, result.name, run);
          if (train_run(config, path, how) == "stopped") {
            fmt::print(stderr, "mad: stopped; the same command goes on\n");
            return 1;
          }
          const double accuracy = final_accuracy(path);
          result.finished += 1;
          if (result.best_run.empty() || accuracy > result.best)
            result.best = accuracy, result.best_run = run;
        }
    }
  }
  if (options.json) {
    print_json(scores);
    return 0;
  }
  for (const Score& score : scores) {
    for (const Setting& s : score.settings)
      fmt::print("{:<26} {:<26} {:.4f}  {}\n", score.task, s.name, s.best, s.best_run);
    fmt::print("{:<26} {:<26} {:.4f}\n", score.task, "score", score.mean());
  }
  return 0;
}

}  // namespace eigentrace
