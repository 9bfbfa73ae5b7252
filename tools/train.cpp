// `eigentrace train`: a run from a configuration, or on from its checkpoint.
#include <fmt/format.h>

#include <filesystem>

#include "tensor/error.h"
#include "tensor/io/file.h"
#include "tools/commands.h"
#include "tools/progress.h"
#include "tools/run_spectra.h"
#include "tools/trainer.h"

namespace eigentrace {
namespace {

DType parse_dtype(const std::string& name) {
  if (name == "f32") return DType::f32;
  if (name == "f64") return DType::f64;
  fail_usage(fmt::format("--dtype: f32 or f64 expected, found '{}'", name));
}

void explain(const LoadedConfig& loaded) {
  fmt::print("{}", to_yaml(loaded.config));
  for (const std::string& notice : loaded.notices) fmt::print("# {}\n", notice);
  if (loaded.notices.empty()) fmt::print("# every key has an effect\n");
}

}  // namespace

int train_command(const TrainOptions& options) {
  if (options.config.empty() == options.resume.empty())
    fail_usage("train: give a configuration file, or --resume with a run folder");
  TrainerOptions how;
  how.device = parse_device(options.device);
  how.dtype = parse_dtype(options.dtype);
  how.precision = parse_precision(options.precision);
  check_precision(how.precision, how.device);
  if (!options.attention_precision.empty()) {
    how.attention_precision = parse_precision(options.attention_precision);
    check_precision(*how.attention_precision, how.device);
  }
  how.capture = !options.eager;
  how.tensorboard = options.tensorboard;
  if (options.max_steps < 0) fail_usage("--max-steps: a number from 1, or 0 to go to the end");
  how.max_steps = options.max_steps;

  std::unique_ptr<Trainer> trainer;
  std::string path = options.resume;
  // The .json is written last.
  const auto unread = [](const RunFolder& folder, const char* stage) {
    return !std::filesystem::exists(folder.spectrum(stage) + ".json");
  };
  if (!options.resume.empty()) {
    if (!options.set.empty() || options.explain)
      fail_usage("train: --set and --explain do not go with --resume: a run goes on as it was configured");
    const RunFolder folder = RunFolder::open(path);
    // A run that was interrupted between its last step and its spectra has only these to do.
    if (folder.read_info().state != "finished" || !unread(folder, "trained"))
      trainer = Trainer::resume(folder, how);
  } else {
    const LoadedConfig loaded = read_config_file(options.config, options.set);
    if (options.explain) {
      explain(loaded);
      return 0;
    }
    for (const std::string& notice : loaded.notices) fmt::print(stderr, "note: {}\n", notice);
    path =
        options.out.empty() ? "runs/" + std::filesystem::path(options.config).stem().string() : options.out;
    const RunFolder folder = RunFolder::create(path, options.force);
    trainer = std::make_unique<Trainer>(loaded.config, folder, how);
  }
  fmt::print(stderr, "{} on {} ({})\n", bold(path), to_string(how.device), describe(how.device));

  const RunFolder folder = RunFolder::open(path);
  RunSpectraOptions spectra;
  spectra.device = how.device;
  if (unread(folder, "initial")) run_spectra(folder, "initial", spectra);
  const RunInfo info = trainer ? trainer->run() : folder.read_info();
  if (info.state == "finished") run_spectra(folder, "trained", spectra);
  const std::vector<MetricsRow> rows = folder.read_metrics();
  if (options.json) {
    fmt::print("{}", read_file(folder.info_file()));
  } else {
    fmt::print("{}: {} after step {} of {} ({}), {}\n", path, info.state, info.step, info.total_steps,
               info.reason, format_duration(info.wall_seconds));
    for (auto row = rows.rbegin(); row != rows.rend(); ++row)
      if (row->split != "train") {
        const std::string macro =
            row->macro_accuracy ? fmt::format(" (macro {:.4f})", *row->macro_accuracy) : "";
        fmt::print("{}: {} loss {:.4f}, accuracy {:.4f}{} at step {}\n", path, row->split, row->loss,
                   row->accuracy, macro, row->step);
        break;
      }
  }
  return 0;
}

}  // namespace eigentrace
