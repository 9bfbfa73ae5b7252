// `eigentrace sweep`: plan, then run, list or write a job array.
#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "tensor/context.h"
#include "tensor/error.h"
#include "tensor/io/file.h"
#include "tensor/io/json_writer.h"
#include "tools/commands.h"
#include "tools/progress.h"
#include "tools/slurm.h"
#include "tools/summary.h"
#include "tools/sweep_run.h"

namespace eigentrace {
namespace {

void print_plan_json(const SweepPlan& plan, const std::string& folder,
                     const std::vector<std::string>& states) {
  JsonWriter json(JsonWriter::Style::pretty);
  json.begin_object().field("sweep", plan.name).field("folder", folder).key("points").begin_array();
  for (size_t i = 0; i < plan.points.size(); ++i) {
    const SweepPoint& point = plan.points[i];
    json.begin_object().field("name", point.name).field("base_config", point.base).field("task", point.task);
    json.field("seed", point.seed).key("steps");
    point.steps ? json.value(*point.steps) : json.null();
    json.field("state", states[i]).field("run", folder + "/runs/" + point.name);
    json.key("settings").begin_object();
    for (const SweepSetting& s : point.settings) json.field(s.key, s.value);
    json.end_object().end_object();
  }
  json.end_array().key("notices").values(plan.notices).end_object();
  fmt::print("{}\n", json.text());
}

/// Each planned point's state in a folder that may not exist yet.
std::vector<std::string> states_of(const SweepPlan& plan, const std::string& folder) {
  std::map<std::string, std::string> known;
  if (SweepStore::exists(folder))
    for (const PointRecord& p : SweepStore::open(folder).points_now()) known[p.name] = p.state;
  std::vector<std::string> states;
  for (const SweepPoint& point : plan.points) {
    const auto at = known.find(point.name);
    states.push_back(at == known.end() ? "pending" : at->second);
  }
  return states;
}

/// Names of the chosen points. Error (usage): no such point.
std::vector<std::string> chosen_points(const SweepStore& store, const std::vector<std::string>& wanted) {
  const std::vector<std::string> names = store.planned();
  std::vector<std::string> chosen;
  for (const std::string& word : wanted) {
    const bool number = !word.empty() && word.size() < 9 &&
                        std::ranges::all_of(word, [](unsigned char c) { return std::isdigit(c); });
    if (std::find(names.begin(), names.end(), word) != names.end())
      chosen.push_back(word);
    else if (number && std::stoul(word) < names.size())
      chosen.push_back(names[std::stoul(word)]);
    else
      fail_usage(fmt::format("--point: no point '{}'; --plan lists the {} there are", word, names.size()));
  }
  return chosen;
}

/// The options of `train` that say how it computes; all but the default type are named only where they are
/// given.
std::vector<std::string> arithmetic_of(const SweepOptions& options) {
  std::vector<std::string> words = {"--dtype", options.dtype};
  if (options.precision != "fp32") words.insert(words.end(), {"--precision", options.precision});
  if (!options.attention_precision.empty())
    words.insert(words.end(), {"--attention-precision", options.attention_precision});
  return words;
}

void write_slurm(const SweepStore& store, const SweepOptions& options, const std::vector<std::string>& only,
                 const std::string& device) {
  SlurmJob job;
  job.program = program_path();
  job.folder = std::filesystem::absolute(store.folder()).lexically_normal().string();
  job.work_folder = std::filesystem::current_path().string();
  job.name = std::filesystem::path(job.folder).filename().string();
  job.device = device;
  job.arithmetic = arithmetic_of(options);
  job.options = options.slurm_options;
  for (const PointRecord& p : store.points()) {
    const bool wanted = only.empty() || std::find(only.begin(), only.end(), p.name) != only.end();
    if (wanted && p.state != "finished" && p.state != "failed") job.points.push_back(p.name);
  }
  constexpr size_t usual_array = 1000;
  if (job.points.size() > usual_array)
    fmt::print(stderr,
               "note: more than Slurm's usual MaxArraySize allows (1001 tasks); see scontrol show config\n");
  const std::string path = job.folder + "/slurm.sh";
  write_atomically(path, slurm_script(job));
  fmt::print(stderr, "{} tasks. Submit and watch:\n", job.points.size());
  fmt::print("sbatch {}\n", shell_word(path));
  fmt::print(stderr, "  squeue --me\n  eigentrace summary {}\n", shell_word(store.folder()));
}

}  // namespace

int sweep_command(const SweepOptions& options) {
  if (options.dtype != "f32" && options.dtype != "f64")
    fail_usage(fmt::format("--dtype: f32 or f64 expected, found '{}'", options.dtype));
  if (options.jobs < 1) fail_usage("--jobs: a number from 1");
  if (options.slurm && (options.jobs > 1 || options.devices.size() > 1))
    fail_usage("sweep --slurm: a task trains one point on one device; leave --jobs and --devices away");
  if (!options.slurm && !options.slurm_options.empty()) fail_usage("--slurm-options: goes with --slurm");
  const Precision precision = parse_precision(options.precision);
  const Precision attention =
      options.attention_precision.empty() ? precision : parse_precision(options.attention_precision);
  SweepRunOptions how;
  const std::vector<std::string> devices =
      options.devices.empty() ? std::vector<std::string>{options.device} : options.devices;
  if (!options.slurm)  // the array may run on another machine
    for (const std::string& name : devices) {
      const Device device = parse_device(name);
      check_precision(precision, device), check_precision(attention, device);
    }
  for (int job = 0; job < options.jobs; ++job)
    how.devices.insert(how.devices.end(), devices.begin(), devices.end());

  std::optional<SweepStore> store;
  if (std::filesystem::is_directory(options.file)) {
    if (!options.out.empty() || !options.set.empty() || options.plan)
      fail_usage("sweep: --out, --set and --plan go with a sweep's file, not with its folder");
    store.emplace(SweepStore::open(options.file));
  } else {
    const SweepPlan plan = read_sweep_file(options.file, options.set);
    const std::string folder = options.out.empty() ? "runs/" + plan.name : options.out;
    const std::vector<std::string> states = states_of(plan, folder);
    for (const std::string& notice : plan.notices) fmt::print(stderr, "note: {}\n", notice);
    if (options.plan) {
      options.json ? print_plan_json(plan, folder, states) : fmt::print("{}", plan_table(plan, states));
      return 0;
    }
    fmt::print(stderr, "{}\n{}", bold(folder), plan_table(plan, states));
    store.emplace(SweepStore::create(folder));
    store->take(plan);
  }
  how.only = chosen_points(*store, options.points);
  if (options.retry_failed) store->retry_failed();
  if (options.slurm) {
    write_slurm(*store, options, how.only, devices[0]);
    return 0;
  }
  how.program = program_path();
  how.threads = options.threads > 0
                    ? options.threads
                    : std::max(1, omp_get_max_threads() / static_cast<int>(how.devices.size()));
  how.arithmetic = arithmetic_of(options);
  const bool whole = run_sweep(*store, how);

  const std::vector<std::string> planned = store->planned();
  int64_t missing = 0, failed = 0;
  for (const PointRecord& p : store->points()) {
    const std::vector<std::string>& wanted = how.only.empty() ? planned : how.only;
    if (std::find(wanted.begin(), wanted.end(), p.name) == wanted.end()) continue;
    missing += p.state != "finished", failed += p.state == "failed";
  }
  if (options.points.empty()) print_sweep(*store, options.json);
  if (!whole) fmt::print(stderr, "stopped; the same command goes on\n");
  if (failed > 0) fmt::print(stderr, "{} failed; --retry-failed tries them again\n", failed);
  return missing == 0 ? 0 : 1;
}

}  // namespace eigentrace
